"""`benchmarks/full_size.py` on shrunk models: what it counts, and that the full ones are of the right size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import full_size
import pytest
import torch
from live_bytes import LiveBytes

PARAMETERS = {"sd15": 859.5e6, "sdxl": 2567.5e6, "sd3": 2028.3e6, "flux": 11901.4e6}
ROWS = {"sd15": 2, "sdxl": 2, "sd3": 2, "flux": 1}
STEPS, PROMPTS, GROUPS = 2, 6, 2  # of four and of two; a half of the steps together


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> list[Any]:
    """The benchmark's rows, as it prints them."""
    given = ["--tiny", "--steps", str(STEPS), "--prompts", str(PROMPTS), "--share-ratio", "0.5", *options]
    monkeypatch.setattr(sys, "argv", ["full_size.py", *given])
    full_size.main()
    printed, table = capsys.readouterr().out.split("\n\n")
    assert len(table.splitlines()) == len(printed.splitlines()) + 2
    return [json.loads(line) for line in printed.splitlines()]


def check(row: dict[str, Any]) -> None:
    """Rows run are those planned, which the benchmark asserts, and those of the rule in how-it-works."""
    rows, calls = ROWS[row["model"]], STEPS + (row["model"] == "sd15")  # PNDM takes its first step twice
    apart = STEPS // 2
    expected = {
        "independent": PROMPTS * rows * calls,
        "shared": GROUPS * (calls - apart) + PROMPTS * rows * apart,
    }
    assert row["evaluations"] == expected
    assert row["evaluations_saved"] == pytest.approx(1 - expected["shared"] / expected["independent"])
    assert row["prompts_a_call"]["independent"] * rows == row["micro_batch"]
    assert row["peak_not_above"] == (row["peak_mib"]["shared"] <= row["peak_mib"]["independent"])
    assert all(peak > row["weights_mib"] for peak in row["peak_mib"].values())


def test_both_ways_are_timed_and_their_rows_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.json"
    rows = run(monkeypatch, capsys, "--device", "cpu", "--repeats", "1", "--out", str(out))
    assert [row["model"] for row in rows] == list(full_size.MODELS)
    assert json.loads(out.read_text()) == rows
    (twice,) = run(monkeypatch, capsys, "--device", "cpu", "--models", "flux", "--repeats", "2")
    for row in (*rows, twice):
        check(row)
        ours, theirs = row["seconds"]["shared"], row["seconds"]["independent"]
        repeats = 2 if row is twice else 1
        assert len(ours) == len(theirs) == len(row["processor_saved"]) == repeats
        assert (row["wall_clock_saved"]["spread"] is None) == (repeats == 1)
        assert row["wall_clock_saved"]["each"] == [1 - a / b for a, b in zip(ours, theirs, strict=True)]
        assert row["ratio"] == pytest.approx(row["wall_clock_saved"]["mean"] / row["evaluations_saved"])


def test_bytes_are_counted_alike_each_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = run(monkeypatch, capsys, "--device", "meta", "--models", "flux", "flux", "sd3")
    assert first == again
    for row in (first, other):
        check(row)
        assert "seconds" not in row


def test_with_the_autoencoder_images_are_made_and_its_bytes_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for device, model in (("cpu", "sd15"), ("meta", "flux")):
        options = ("--device", device, "--models", model, "--repeats", "1")
        (latents,), (images,) = (run(monkeypatch, capsys, *options, *more) for more in ((), ("--decode",)))
        check(images)
        assert images["evaluations"] == latents["evaluations"]
        assert images["weights_mib"] > latents["weights_mib"]


def test_what_is_alive_is_counted_once() -> None:
    given = torch.zeros(1000)  # 4000 bytes
    with LiveBytes([given]) as live:
        made = given.view(10, 100) + 1  # 4000 more; the view is none
        assert (live.now, live.most) == (8000, 8000)
        del made
        assert (live.now, live.most) == (4000, 8000)
        other = torch.zeros(100)
        assert (live.now, live.most) == (4000 + other.nbytes, 8000)


def test_a_micro_batch_that_independent_sampling_cannot_fill_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--tiny", "--models", "sd15", "--micro-batch", "3"])
    with pytest.raises(SystemExit, match="should be a multiple"):
        full_size.main()


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_models_have_the_real_ones_parameters(name: str) -> None:
    model = full_size.MODELS[name]
    denoiser = full_size.make_denoiser(model, model.full, "meta", torch.bfloat16)
    found = sum(weight.numel() for weight in denoiser.parameters())
    assert found == pytest.approx(PARAMETERS[name], rel=0.01)
    assert {weight.dtype for weight in denoiser.parameters()} == {torch.bfloat16}


def test_latents_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = full_size.make_denoiser

    def broken(*args: Any) -> Any:
        denoiser = made(*args)
        next(denoiser.parameters()).fill_(torch.nan)
        return denoiser

    monkeypatch.setattr(full_size, "make_denoiser", broken)
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--tiny", "--models", "flux", "--device", "cpu"])
    with pytest.raises(FloatingPointError, match="not finite"):
        full_size.main()
