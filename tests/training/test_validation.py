"""What a training run draws, and its teacher: every option of sharing is obeyed, and the teacher may be asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sagediff
from sagediff.plan.sharing import Sharing
from sagediff.training.captioned_images import CaptionedImages, load_images
from sagediff.training.loop import _Run
from sagediff.training.train_config import TrainConfig
from sagediff.training.validation import draw_validation

PROMPTS = ["a large cat at the top on a red background", "a large dog at the top on a red background"]


@pytest.fixture
def rows_run(small_demo: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every run of the denoiser itself."""
    found: list[int] = []
    forward = small_demo.unet.forward

    def counted(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(small_demo.unet, "forward", counted)
    monkeypatch.setattr("sagediff.training.validation.STEPS", 4)
    return found


@pytest.mark.parametrize(
    ("sharing", "rows"),
    [
        (Sharing(-1, 0.5, unguided=1.0), 2 * 4 + (2 * 1 + 2 * 2)),
        (Sharing(-1, 0.5, unguided=0.5), (2 * 2 + 2 * 4) + (2 * 1 + 2 * 4)),
        (Sharing(-1, 0.5, shared_guidance=None), 4 * 4 + (2 * 2 + 2 * 4)),
        (Sharing(-1, 0.25, rungs=((-0.9, 0.75),), unguided=1.0), 2 * 4 + (3 * 1 + 1 * 2)),
        (Sharing(-1, 0.25, rungs=((-0.9, 0.75),), parting="together", unguided=1.0), 2 * 4 + (3 * 1 + 1 * 2)),
    ],
    ids=["unguided", "half unguided", "guidance kept", "tree", "together"],
)
def test_validation_images_are_sampled_with_all_of_the_sharing(
    small_demo: Any, rows_run: list[int], tmp_path: Path, sharing: Sharing, rows: int
) -> None:
    path = draw_validation(small_demo, PROMPTS, sharing, tmp_path / "validation.png", 4.0)
    assert path.is_file() and sum(rows_run) == rows


@pytest.fixture
def images(tmp_path: Path) -> CaptionedImages:
    for number, prompt in enumerate(PROMPTS):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
        with (tmp_path / "metadata.jsonl").open("a") as file:
            file.write(f'{{"file_name": "{number}.png", "text": "{prompt}"}}\n')
    return load_images(str(tmp_path))


@pytest.mark.parametrize("rank", [2, 0])
def test_a_step_may_ask_its_teacher_more_than_once(
    images: CaptionedImages, tmp_path: Path, rank: int
) -> None:
    config = TrainConfig(tmp_path / "out", rank=rank, train_batch_size=2, threshold=-1.0, report_to="none")
    run = _Run(sagediff.load_pipeline("demo"), images, config, "demo")
    batch = run._batch(0, np.random.default_rng(0))
    teacher, student = (
        run._predict(run.teacher, run.teacher_context),
        run._predict(run.model, lambda: torch.no_grad()),
    )
    with torch.no_grad():
        for parameter in run.trained.values():
            parameter.add_(0.1)  # so that the student is another model
        timesteps = torch.full((len(batch.latents),), 500)
        first, again = (teacher(batch.latents, timesteps, batch.conditions) for _ in range(2))
        own = student(batch.latents, timesteps, batch.conditions)
    assert torch.equal(first, again) and not torch.allclose(first, own)
