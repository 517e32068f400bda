"""The example that spells the method out makes the images that the hook makes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sagediff import shared_sampling

SCRIPT = Path(__file__).parents[2] / "examples" / "by_hand.py"


def test_by_hand_equals_shared_sampling(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "sheet")])
    made = runpy.run_path(str(SCRIPT))
    plan = made["plan"]
    assert plan.groups == made["groups"] and sorted(map(len, plan.groups)) == [1, 2, 3]
    with shared_sampling(demo, plan) as run:
        images = demo(
            made["PROMPTS"],
            num_inference_steps=made["STEPS"],
            guidance_scale=made["GUIDANCE"],
            generator=plan.generators(seed=0),
            output_type="pt",
        ).images
    torch.testing.assert_close(made["images"], images, rtol=0, atol=1e-5)
    assert made["evaluations"] == run.evaluations == plan.evaluations < plan.evaluations_independent
    with Image.open(tmp_path / "sheet" / "sheet.png") as sheet:
        assert sheet.size == (3 * 64, 3 * 64)
