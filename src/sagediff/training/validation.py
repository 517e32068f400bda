"""Validation images: some groups, sampled independently and shared, one above the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sagediff.files.atomic import writing
from sagediff.plan.sharing import Sharing
from sagediff.sampling.sampler import SharedSampler

STEPS = 20
_CELL, _GAP, _LABEL = 128, 6, 90  # pixels


def draw_validation(
    pipe: Any,
    prompts: Sequence[str],
    sharing: Sharing,
    path: Path,
    guidance_scale: float | None,
    seed: int = 0,
    steps: int | None = None,
    size: Mapping[str, Any] | None = None,
) -> Path:
    """Sample the prompts both ways from the same seeds and save the two rows as one PNG.

    Args:
        prompts: of some groups, in order; eight or so.
        sharing: how the shared row shares; without guidance early on, both rows are.
        steps: of the sampling; None takes `STEPS`.
        size: further options of the pipeline's call, such as the size; of a video its first frame is shown.
    """
    rows = []
    for words, used in (("independent", replace(sharing, share_ratio=0.0, rungs=())), ("shared", sharing)):
        result = SharedSampler(pipe, used)(
            list(prompts),
            num_inference_steps=steps or STEPS,
            guidance_scale=guidance_scale,
            seed=seed,
            **(size or {}),
        )
        images = result.images or [frames[0] for frames in result.videos]
        rows.append((f"{words}\n{result.plan.cost_saving:.0%} saved", images))
    width = _LABEL + len(prompts) * (_CELL + _GAP)
    sheet = Image.new("RGB", (width, len(rows) * (_CELL + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (words, images) in enumerate(rows):
        draw.multiline_text((4, row * (_CELL + _GAP) + 4), words, fill="black", font=font)
        for column, image in enumerate(images):
            cell = image.convert("RGB").resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (_LABEL + column * (_CELL + _GAP), row * (_CELL + _GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as partial:
        sheet.save(partial, format="PNG")
    return path
