"""LoRA files of others: what fits is counted, what does not fit or is broken is refused in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagediff.builtin.scenes import lora_dir
from sagediff.errors import InputError
from sagediff.pipelines.lora import RECORD_KEY, lora_file, sharing_record, sharing_warnings
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions, resolve

GOOD: dict[str, Tensor] = load_file(lora_file(lora_dir()))
OTHER = {  # of a U-Net with more blocks than the built-in one
    f"unet.down_blocks.5.attentions.{i}.transformer_blocks.0.attn1.to_q.lora_{half}.weight": torch.randn(
        shape
    )
    for i in range(20)
    for half, shape in (("A", (8, 64)), ("B", (64, 8)))
}
FIRST = next(iter(GOOD)).rsplit(".lora", 1)[0]


def with_tensors(
    tmp_path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    file = tmp_path / "mine.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file


def refused(file: Path) -> str:
    with pytest.raises(InputError) as raised:
        open_pipeline(ModelOptions("demo", file))
    assert "\n" not in str(raised.value) and str(file) in str(raised.value)
    return str(raised.value)


def test_a_lora_of_which_nearly_nothing_fits_is_refused_with_the_numbers(tmp_path: Path) -> None:
    partly = {name: tensor for name, tensor in GOOD.items() if name.startswith(FIRST + ".")} | OTHER
    assert "made for another base: 2 of its 42 tensors fit" in refused(with_tensors(tmp_path, partly))


def test_a_lora_of_which_most_fits_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = dict(list(OTHER.items())[:4])
    open_pipeline(ModelOptions("demo", with_tensors(tmp_path, GOOD | few)))
    shown = capsys.readouterr().err
    assert f"warning: {len(GOOD)} of the {len(GOOD) + 4} tensors" in shown and shown.count("\n") == 1


def test_a_whole_lora_and_one_for_fewer_layers_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tensors in (GOOD, {name: tensor for name, tensor in GOOD.items() if ".up_blocks." not in name}):
        open_pipeline(ModelOptions("demo", with_tensors(tmp_path, tensors)))
        assert capsys.readouterr().err == ""


def kohya(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same as other trainers write it."""
    made = {}
    for name, tensor in tensors.items():
        layer, half = name.removeprefix("unet.").rsplit(".lora_", 1)
        base = "lora_unet_" + layer.replace(".", "_")
        made[f"{base}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
        if half[0] == "A":
            made[f"{base}.alpha"] = torch.tensor(float(tensor.shape[0]))
    return made


def test_names_of_other_trainers_are_counted_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_pipeline(ModelOptions("demo", with_tensors(tmp_path, kohya(GOOD))))
    assert capsys.readouterr().err == ""


def test_a_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    assert "made for another base: it holds no layers" in refused(with_tensors(tmp_path, OTHER))
    flux = {f"transformer.{name}": tensor for name, tensor in OTHER.items()}
    assert "made for another base" in refused(with_tensors(tmp_path, flux))


def test_another_shape_is_said(tmp_path: Path) -> None:
    wider = {n: torch.cat([t, t[:, :1]], 1) if "lora_A" in n else t for n, t in GOOD.items()}
    message = refused(with_tensors(tmp_path, wider))
    assert "another shape than this model: size mismatch for" in message and "torch.Size" in message


def test_half_of_the_pairs_is_said(tmp_path: Path) -> None:
    half = {name: tensor for name, tensor in GOOD.items() if "lora_A" in name}
    assert f"not whole: {len(half)} of its {len(half)} pairs" in refused(with_tensors(tmp_path, half))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tensors_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    name = list(GOOD)[3]
    broken = dict(GOOD) | {name: torch.full_like(GOOD[name], value)}
    assert f"is broken: {name} holds values that are not finite" in refused(with_tensors(tmp_path, broken))


def test_tensors_whose_product_is_not_finite_are_refused(tmp_path: Path) -> None:
    huge = {name: torch.full(tensor.shape, 1e30) for name, tensor in GOOD.items()}
    assert "weights that are not finite" in refused(with_tensors(tmp_path, huge))


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = with_tensors(tmp_path, GOOD).read_bytes()
    file = tmp_path / "mine.safetensors"
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2], whole[:8], b"\xff" * 8 + b"{}"):
        file.write_bytes(content)
        assert "is not a safetensors file" in refused(file)
    for name in ("x" * 5000, "nul\0", "none.safetensors"):
        with pytest.raises(InputError):
            lora_file(tmp_path / name)


# -- the record


RECORD: dict[str, Any] = {
    "share_ratio": 0.4,
    "max_share_ratio": 0.5,
    "max_group_size": 4,
    "objective": "sage",
}


@pytest.mark.parametrize(
    "record, words",
    [
        (RECORD | {"max_share_ratio": "high"}, "`max_share_ratio` must be a number"),
        (RECORD | {"max_share_ratio": [0.5]}, "`max_share_ratio` must be a number"),
        (RECORD | {"max_share_ratio": True}, "`max_share_ratio` must be a number"),
        (RECORD | {"max_share_ratio": 7}, r"`max_share_ratio` must lie in \[0, 1\]"),
        (RECORD | {"max_group_size": 0}, "`max_group_size` must be at least 1"),
        (RECORD | {"max_group_size": 2.5}, "`max_group_size` must be a whole number"),
        (RECORD | {"share_ratio": -1}, "`share_ratio` must lie in"),
        (RECORD | {"share_ratio": {}}, "`share_ratio` must be a number"),
        ([RECORD], "should hold a JSON object"),
        (None, "should hold a JSON object"),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path: Path, record: object, words: str) -> None:
    file = with_tensors(tmp_path, GOOD, {RECORD_KEY: json.dumps(record)})
    for read in (sharing_record, lambda file: resolve(ModelOptions("demo", file))):
        with pytest.raises(InputError, match=rf"mine\.safetensors.*{words}"):
            read(file)


NO_JSON = ["{", "[" * 100_000, '{"share_ratio": ' + "9" * 5000 + "}", '{"a": NaN}', r'{"a": "\ud800"}']


@pytest.mark.parametrize("number", range(len(NO_JSON)))
def test_a_record_that_is_no_json_is_one_line(tmp_path: Path, number: int) -> None:
    text = NO_JSON[number]
    with pytest.raises(InputError, match=r"mine\.safetensors") as raised:
        sharing_record(with_tensors(tmp_path, GOOD, {RECORD_KEY: text}))
    assert "\n" not in str(raised.value)


def test_what_a_record_does_not_say_is_not_asked_for(tmp_path: Path) -> None:
    for record in (RECORD, {"share_ratio": None}, {"other": [1]}, {}):
        assert sharing_record(with_tensors(tmp_path, GOOD, {RECORD_KEY: json.dumps(record)})) == record
        assert sharing_warnings(tmp_path / "mine.safetensors", 0.3, 3) == []
