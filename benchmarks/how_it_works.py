"""Draws docs/images/how-it-works.png: what one group of the built-in model shares, step by step.

    python benchmarks/how_it_works.py --out docs/images/how-it-works.png

The images are the latents after those steps, decoded, of one run inside `shared_sampling`; the counts are that
run's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from world_eval import accuracy, to_judge

import sagediff
from sagediff.builtin.scenes import judge_dir
from sagediff.builtin.scenes.networks import load_judge

PROMPTS = [
    "a large ball at the top on a green background",
    "a large cake at the top on a green background",
    "a large rabbit at the top on a green background",
]  # out of examples/prompts.txt; one group at the built-in model's own threshold
SCALE = 2  # drawn at twice the size it is read at
CELL, GAP, ROW_GAP = 96 * SCALE, 22 * SCALE, 26 * SCALE
LEFT, TOP, RIGHT, BOTTOM = 16 * SCALE, 112 * SCALE, 16 * SCALE, 52 * SCALE
INK, SOFT, SHARED, OWN = (30, 30, 34), (110, 110, 118), (36, 98, 180), (206, 98, 30)


def sample(pipe: Any, steps: int, ratio: float, guidance: float, seed: int) -> tuple[Any, list[Any]]:
    """The run, and for every step the members' decoded states; the last entry is the final images."""
    vectors = sagediff.embed_prompts(PROMPTS, pipe).vectors
    groups = sagediff.group_prompts(vectors, threshold=0.45)
    if len(groups) != 1:
        raise SystemExit(f"these prompts are not one group: {groups}")
    plan = sagediff.SharePlan.from_groups(groups, steps, ratio, shared_guidance=1.0)
    states: list[list[Image.Image]] = []

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            decoded = pipe.vae.decode(values["latents"] / pipe.vae.config.scaling_factor).sample
        states.append(pipe.image_processor.postprocess(decoded, output_type="pil"))
        return values

    with sagediff.shared_sampling(pipe, plan) as run:
        images = pipe(
            PROMPTS, num_inference_steps=steps, guidance_scale=guidance, generator=plan.generators(seed),
            callback_on_step_end=keep,
        ).images  # fmt: skip
    branch = plan.branch_steps[0]
    for step in range(branch):
        same = [np.array_equal(np.asarray(states[step][0]), np.asarray(state)) for state in states[step]]
        if not all(same):
            raise SystemExit(f"step {step} is not shared")
    states[-1] = images
    print("the judge reads", accuracy(load_judge(judge_dir()), to_judge(images), PROMPTS))
    return run, states


def draw(
    plan: Any, evaluations: int, states: list[Any], shared_shown: list[int], own_shown: list[int]
) -> Any:
    """The image; `shared_shown` and `own_shown` are numbers of steps taken."""
    title, plain, small = (ImageFont.load_default(size * SCALE) for size in (19, 14, 12.5))
    branch, steps, count = plan.branch_steps[0], plan.num_steps, len(PROMPTS)
    pitch = CELL + GAP
    fork = 30 * SCALE  # extra room for the fork
    columns = len(shared_shown) + len(own_shown)
    width = LEFT + columns * CELL + (columns - 1) * GAP + fork + RIGHT
    row_pitch = CELL + 22 * SCALE + ROW_GAP
    height = TOP + count * row_pitch - ROW_GAP + BOTTOM
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)

    def text(x: float, y: float, words: str, font: Any, fill: Any, anchor: str = "la") -> None:
        pen.text((x, y), words, font=font, fill=fill, anchor=anchor)

    def place(image: Image.Image, x: int, y: int, frame: Any) -> None:
        sheet.paste(image.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        pen.rectangle((x - SCALE, y - SCALE, x + CELL, y + CELL), outline=frame, width=SCALE)

    def line(points: list[tuple[float, float]], fill: Any) -> None:
        pen.line(points, fill=fill, width=2 * SCALE, joint="curve")

    middle = (count - 1) * row_pitch // 2
    shared_x = [LEFT + pitch * i for i in range(len(shared_shown))]
    own_x = [LEFT + pitch * (len(shared_shown) + i) + fork for i in range(len(own_shown))]
    fork_x = shared_x[-1] + CELL + (GAP + fork) // 2

    # rows that independent sampling could leave out as well
    guidance_off = count * branch * (plan.rows_per_prompt - 1)
    by_sharing = plan.evaluations_independent - guidance_off - evaluations
    text(
        LEFT, 14 * SCALE,
        f"{count} prompts, one group: {evaluations} evaluations instead of {plan.evaluations_independent} "
        f"(sharing saves {by_sharing}, guidance off {guidance_off})",
        title, INK,
    )  # fmt: skip
    head = TOP - 60 * SCALE
    for x0, x1, words, fill in (
        (shared_x[0], shared_x[-1] + CELL, f"steps 1-{branch}, taken together", SHARED),
        (own_x[0], own_x[-1] + CELL, f"steps {branch + 1}-{steps}, each on its own prompt", OWN),
    ):
        text((x0 + x1) / 2, head, words, plain, fill, "ma")
        pen.line([(x0, head + 22 * SCALE), (x1, head + 22 * SCALE)], fill=fill, width=SCALE)

    for x, step in zip(shared_x, shared_shown, strict=True):
        y = TOP + middle
        place(states[step - 1][0], x, y, SHARED)
        text(x + CELL / 2, y + CELL + 5 * SCALE, f"step {step}", small, SOFT, "ma")
        if x != shared_x[0]:
            line([(x - GAP + 3 * SCALE, y + CELL / 2), (x - 4 * SCALE, y + CELL / 2)], SHARED)
    start = TOP + middle + CELL // 2
    line([(shared_x[-1] + CELL + 3 * SCALE, start), (fork_x, start)], SHARED)
    first, last = TOP + CELL // 2, TOP + (count - 1) * row_pitch + CELL // 2
    line([(fork_x, first), (fork_x, last)], OWN)
    for member, prompt in enumerate(PROMPTS):
        y = TOP + member * row_pitch
        line([(fork_x, y + CELL / 2), (own_x[0] - 4 * SCALE, y + CELL / 2)], OWN)
        for x, step in zip(own_x, own_shown, strict=True):
            place(states[step - 1][member], x, y, OWN)
            if member == 0:
                words = f"step {step}" if step < steps else "the image"
                text(x + CELL / 2, y - 5 * SCALE, words, small, SOFT, "md")
            if x != own_x[0]:
                line([(x - GAP + 3 * SCALE, y + CELL / 2), (x - 4 * SCALE, y + CELL / 2)], OWN)
        text(own_x[-1] + CELL, y + CELL + 5 * SCALE, prompt, small, INK, "ra")
    radius = 5 * SCALE
    pen.ellipse((fork_x - radius, start - radius, fork_x + radius, start + radius), fill=OWN)

    shared_rows = sum(plan.step_evaluations(step) for step in range(branch))
    text(
        LEFT, height - 36 * SCALE,
        f"Together: {shared_rows} evaluations, on the mean of the prompts' conditions, without guidance.  "
        f"Apart: {evaluations - shared_rows}, with guidance.",
        small, SOFT,
    )  # fmt: skip
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images/how-it-works.png"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--share-ratio", type=float, default=0.3)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared-shown", type=int, nargs="+", default=[1, 4, 6], help="steps taken")
    parser.add_argument("--own-shown", type=int, nargs="+", default=[8, 11, 15, 20], help="steps taken")
    args = parser.parse_args()
    pipe = sagediff.load_pipeline("demo")
    pipe.set_progress_bar_config(disable=True)
    run, states = sample(pipe, args.steps, args.share_ratio, args.guidance, args.seed)
    image = draw(run.plan, run.evaluations, states, args.shared_shown, args.own_shown)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        args.out, optimize=True
    )
    print(args.out, image.size, f"{run.evaluations} of {run.plan.evaluations_independent} evaluations")


if __name__ == "__main__":
    main()
