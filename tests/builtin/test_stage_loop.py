"""The built-in model's training loop: killed and resumed gives the same weights; nothing half-written stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sagediff.builtin.training.stage_loop import LoopConfig, train
from sagediff.errors import InputError


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 4))


class _Killed(Exception):
    pass


def _run(out: Path, resume: bool = False, kill_at: int | None = None) -> nn.Module:
    model = _model()

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        if step == kill_at:
            raise _Killed
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
