"""The frontier: quality against evaluations per image, for independent sampling, sharing, and sharing after training.

    python -m sagediff.builtin.scenes.dataset --out runs/world --renders 3
    sagediff train --objective standard --data runs/world --out runs/standard --rank 8 --lora-layers all \\
        --learning-rate 3e-3 --train-batch-size 48 --threshold 0.35 --steps 2000
    python benchmarks/frontier.py --baseline-lora runs/standard --out runs/frontier

Independent sampling has, at each budget, several step counts and lengths without guidance. Shared sampling after
training runs without guidance and with noise at the hand-over. The trained weights are sampled independently too,
since a part of the gain is theirs alone. Rows of 20 steps are the comparison at equal steps. The result of every
setting and seed is kept: run the command again to continue after a stop.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from world_eval import built_in

from sagediff.builtin.scenes import lora_dir
from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions, reference_features
from sagediff.evaluation.comparison import Bench, embeddings_of, rows_of, run_bench, yardstick
from sagediff.evaluation.grid import AFTER, Setting, Weights
from sagediff.evaluation.grid import independent as nothing_shared
from sagediff.evaluation.plots import frontier
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.report_table import json_text, markdown
from sagediff.evaluation.result_store import CellStore
from sagediff.evaluation.summary import Row
from sagediff.pipelines.placement import open_pipeline
from sagediff.plan.sharing import Sharing

# (steps, of which the first so many without guidance)
INDEPENDENT = [(6, 4), (8, 8), (8, 4), (12, 12), (12, 8), (16, 8), (12, 0), (20, 0), (30, 0)]
# independent sampling with the weights that were trained to share: what of the gain is the training's alone
TRAINED_ALONE = [(2, 2), (3, 3), (4, 4), (8, 8), (20, 0)]
# (steps, of which shared, of which without guidance, noise at the hand-over)
TRAINED = [
    (3, 1, 3, 1.0),
    (4, 2, 4, 1.0),
    (4, 1, 4, 1.0),
    (6, 1, 6, 1.0),
    (8, 2, 8, 1.0),
    (6, 3, 6, 1.0),
    (8, 4, 8, 1.0),
    (12, 6, 12, 1.0),
    (16, 8, 16, 1.0),
    (24, 12, 24, 1.0),
    (20, 10, 20, 1.0),
    (30, 15, 30, 1.0),
]
TRAINED += [(8, 4, 8, 0.0), (20, 8, 8, 0.0), (20, 10, 10, 0.0)]
UNTRAINED = [(12, 6, 12, 1.0), (20, 10, 10, 0.0)]


def independent(weights: Weights, steps: int, unguided: int, threshold: float) -> Setting:
    method = f"independent{AFTER[weights]}"
    return Setting(method, weights, steps, nothing_shared(threshold, unguided=unguided / steps))


def shared(
    weights: Weights, steps: int, branch: int, unguided: int, noise: float, threshold: float
) -> Setting:
    method = f"shared{AFTER[weights]}"
    # guidance is off while sharing anyway
    late = unguided / steps if unguided > branch else 0.0
    sharing = Sharing(threshold, branch / steps, shared_guidance=1.0, unguided=late, handover_noise=noise)
    return Setting(method, weights, steps, sharing)


def settings(fine_tuned: bool, threshold: float) -> list[Setting]:
    """All that is compared; settings with the same weights stand together."""
    plain: list[Weights] = ["base", "standard"] if fine_tuned else ["base"]
    out = []
    for weights in plain:
        out += [independent(weights, *numbers, threshold) for numbers in INDEPENDENT]
        out += [shared(weights, *numbers, threshold) for numbers in UNTRAINED]
    out += [independent("sage", *numbers, threshold) for numbers in TRAINED_ALONE]
    return out + [shared("sage", *numbers, threshold) for numbers in TRAINED]


def measured(
    args: argparse.Namespace, captions: list[str], compared: Sequence[Setting], seeds: tuple[int, ...]
) -> list[Row]:
    """The rows of these settings; cells that are there already are kept."""
    files = {"base": None, "standard": args.baseline_lora, "sage": args.lora}

    def pipelines(weights: Weights) -> Any:
        return open_pipeline(built_in(files[weights]))

    bench = Bench(captions, list(compared), seeds, 4.0, pipelines)
    store = CellStore(args.out)
    store.begin({"captions": len(captions), "seeds": list(seeds)}, {})
    vectors = embeddings_of(bench, pipelines("base"))
    reference = Reference(reference_features(captions), paired=True)
    measure_by = yardstick(bench, vectors, WorldPerception(), reference)
    for setting, seed in run_bench(bench, store, vectors, measure_by):
        cell = store.read(setting, seed)
        figures = {} if cell is None else cell["figures"]
        print(
            f"{setting.method}, {setting.words()}, seed {seed}: {figures['evaluations_per_image']:.2f} "
            f"evaluations, {figures['accuracy_all']:.1%} right, Frechet distance {figures['frechet']:.3f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return rows_of(bench, store)


def name_of(setting: Setting) -> str:
    """A setting as the README's table calls it."""
    steps, sharing = setting.num_steps, setting.sharing
    alone = sharing.share_ratio == 0
    weights = {"base": "", "standard": ", standard fine-tuning", "sage": ", trained"}[setting.weights]
    words = [f"{'independent' if alone else 'shared'}{weights}", f"{steps} steps"]
    if not alone:
        words.append(f"{round(sharing.share_ratio * steps)} together")
    off = round(sharing.unguided * steps)
    if off == steps:
        words.append("no guidance")
    elif alone and not off:
        words.append("guidance 4")
    elif not alone and not off:
        words.append("guidance 4 after")
    else:
        words.append(f"guidance 4 from step {off + 1} on")
    if not alone and not sharing.handover_noise:
        words.append("no noise")
    return ", ".join(words)


def _cell(r: Row, name: str, form: str) -> str:
    """Mean and spread; of one seed there is no spread."""
    figure = r.figures[name]
    return f"{figure.mean:{form}}" + ("" if figure.spread is None else f" ± {figure.spread:{form}}")


def readme_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, in the few columns that a reader looks at."""
    lines = [
        "| sampling | evaluations per image | all four right | Frechet distance | CLIP score | diversity in groups |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        evaluations, diversity = r.figures["evaluations_per_image"].mean, r.figures["diversity"].mean
        lines.append(
            f"| {name_of(r.setting)} | {evaluations:.2f} | {_cell(r, 'accuracy_all', '.1%')} "
            f"| {_cell(r, 'frechet', '.3f')} | {r.figures['clip_score'].mean:.4f} | {diversity:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lora", type=Path, default=lora_dir())
    parser.add_argument("--baseline-lora", type=Path, help="after standard fine-tuning of equal length")
    parser.add_argument("--threshold", type=float, default=0.35)
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    captions = held_out_captions(args.captions)
    compared = settings(args.baseline_lora is not None, args.threshold)
    for count in range(1, len(args.seeds) + 1):  # seed by seed, so that a stop leaves whole comparisons
        rows = measured(args, captions, compared, tuple(args.seeds[:count]))
        rows.sort(key=lambda r: r.figures["evaluations_per_image"].mean)
        table = markdown(rows).split("\nBy the similarity")[0]
        (args.out / "table.md").write_text(table, encoding="utf-8")
        (args.out / "table.json").write_text(json_text(rows, {"captions": len(captions)}), encoding="utf-8")
        (args.out / "readme.md").write_text(readme_table(rows), encoding="utf-8")
        (args.out / "frontier.png").write_bytes(frontier(rows))
    print((args.out / "table.md").read_text(encoding="utf-8"))
    print(json.dumps({"table": str(args.out / "table.md"), "plot": str(args.out / "frontier.png")}))


if __name__ == "__main__":
    main()
