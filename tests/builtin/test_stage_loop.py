"""The built-in model's training loop: killed and resumed gives the same weights; nothing half-written stays."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sagediff.builtin.training.stage_loop import LoopConfig, train
from sagediff.errors import InputError, StoppedError


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 4))


class _Killed(Exception):
    pass


def _run(
    out: Path, resume: bool = False, kill_at: int | None = None, stop_at: int | None = None
) -> nn.Module:
    model = _model()

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        if step == kill_at:
            raise _Killed
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.from_numpy(rng.normal(size=(4, 3, 8, 8)).astype(np.float32))
        x = x + torch.randn(x.shape, generator=noise)
        return {"square": model(x).square().mean(), "mean": model(x).mean()}

    config = LoopConfig("toy", out, 12, 1e-2, ema=0.9, warmup=1, cooldown=11, save_seconds=0, resume=resume)
    return train(config, model, losses)


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    with pytest.raises(_Killed):
        _run(tmp_path / "cut", kill_at=8)
    resumed = _run(tmp_path / "cut", resume=True)
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not list(tmp_path.rglob("*.partial"))


def test_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steps"):
        LoopConfig("toy", tmp_path, 0, 1e-3)


def test_a_signal_ends_the_run_after_its_step_and_the_log_goes_on(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    with pytest.raises(StoppedError, match="after step 5 of 12"):
        _run(tmp_path / "cut", stop_at=4)
    before = signal.getsignal(signal.SIGTERM)
    resumed = _run(tmp_path / "cut", resume=True)
    assert signal.getsignal(signal.SIGTERM) == before
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "toy.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [12] and {"square", "mean", "cpu_seconds"} <= lines[0].keys()


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [LoopConfig("toy", Path(), 10, 1.0, warmup=2, cooldown=4).rate(step) for step in range(11)]
    assert rates[:6] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates[6:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert {LoopConfig("toy", Path(), 10, 1.0).rate(step) for step in range(10)} == {1.0}


def test_what_was_trained_is_not_trained_over(tmp_path: Path) -> None:
    _run(tmp_path)
    with pytest.raises(InputError, match="--resume goes on with it"):
        _run(tmp_path)
    with pytest.raises(InputError, match="has done 12 steps already"):
        train(LoopConfig("toy", tmp_path, 5, 1e-2, ema=0.9, resume=True), _model(), lambda *_: {})
    with pytest.raises(InputError, match="not a checkpoint of this stage"):  # of a run without an average
        train(LoopConfig("toy", tmp_path, 20, 1e-2, resume=True), nn.Linear(2, 2), lambda *_: {})
    (tmp_path / "toy.checkpoint.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="not a checkpoint of this stage"):
        _run(tmp_path, resume=True)
