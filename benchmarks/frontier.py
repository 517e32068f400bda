"""The frontier: the best of each method at a few budgets of evaluations an image, held to the same budget.

    python benchmarks/frontier.py --baseline-lora runs/standard --out runs/frontier

Every method may choose its step count and how long guidance stays off; shared sampling its share ratio too. The
choice is made on a scan (fewer captions, a seed of its own), for accuracy and for Frechet distance; the chosen
settings then run on all captions and seeds, which the scan has not seen. Both stages are resumable: run it again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sharing import threshold_for

import sagediff
from sagediff.builtin import lora_dir
from sagediff.builtin.perception import WorldPerception, held_out_captions, reference_features
from sagediff.cli.pipelines import open_pipeline
from sagediff.evaluation.bench import Bench, embeddings_of, run_bench, yardstick
from sagediff.evaluation.cells import CellStore
from sagediff.evaluation.plots import frontier
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.settings import Setting, Weights
from sagediff.evaluation.summary import Row, row
from sagediff.evaluation.table import json_text, markdown

BUDGETS = (8, 12, 16, 24)
INDEPENDENT_STEPS = {
    8: (4, 5, 6, 7, 8),
    12: (6, 7, 8, 9, 10, 12),
    16: (8, 9, 10, 12, 14, 16),
    24: (12, 14, 16, 20, 24),
}
SHARED_STEPS = {8: (7, 8, 9, 10, 12), 12: (9, 10, 12, 14, 16), 16: (12, 14, 16, 20), 24: (16, 20, 24, 30)}
AFTER = {"base": "", "standard": ", standard fine-tuning", "sage": ", SAGE training"}


def independent(budget: int, weights: Weights, threshold: float) -> list[Setting]:
    """For each step count, guidance off for as few of the first steps as the budget allows."""
    out = []
    for steps in INDEPENDENT_STEPS[budget]:
        off = max(0, 2 * steps - budget)
        method = f"independent{AFTER[weights]}"
        out.append(Setting(method, weights, steps, 0.0, threshold, None, off / steps))
    return out


def shared(
    budget: int, weights: Weights, threshold: float, ratios: Sequence[float], members: float
) -> list[Setting]:
    """The same with the first steps shared, in groups of `members` prompts on average."""
    out: dict[Setting, None] = {}
    for ratio in ratios:
        for steps in SHARED_STEPS[budget]:
            branch = int(ratio * steps + 0.5)
            cost = branch / members + 2 * (steps - branch)
            off = branch + max(0, math.ceil(cost - budget))
            if off <= steps:
                name = f"shared{AFTER[weights]}"
                out[Setting(name, weights, steps, branch / steps, threshold, 1.0, off / steps)] = None
    return list(out)


def made(
    args: argparse.Namespace, name: str, captions: list[str], settings: list[Setting], seeds: tuple[int, ...]
) -> list[Row]:
    """The rows of these settings; cells that are there already are kept."""
    files = {"base": None, "standard": args.baseline_lora, "sage": args.lora}

    def pipelines(weights: Weights) -> Any:
        return open_pipeline("demo", None, "auto", "auto", files[weights])

    order = ["base", "standard", "sage"]
    settings = sorted(settings, key=lambda setting: order.index(setting.weights))
    bench = Bench(captions, settings, seeds, 4.0, pipelines)
    store = CellStore(args.out / name)
    store.begin({"captions": len(captions), "seeds": list(seeds)})
    vectors = embeddings_of(bench, pipelines("base"))
    measure_by = yardstick(
        bench, vectors, WorldPerception(), Reference(reference_features(captions), paired=True)
    )
    total = len(settings) * len(seeds)
    for done, (setting, seed) in enumerate(run_bench(bench, store, vectors, measure_by), 1):
        cell = store.read(setting, seed)
        assert cell is not None
        figures = cell["figures"]
        print(
            f"{name} {done} of at most {total}: {setting.method}, {setting.words()}, seed {seed}: "
            f"{figures['evaluations_per_image']:.2f} evaluations, {figures['accuracy_all']:.1%} right, "
            f"Frechet distance {figures['frechet']:.3f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return [row(s, [cell for seed in seeds if (cell := store.read(s, seed)) is not None]) for s in settings]


def best(rows: Sequence[Row]) -> list[Row]:
    """The most accurate (by Frechet distance where equal), and the nearest to real pictures; one or two rows."""
    if not rows:
        return []
    accurate = max(rows, key=lambda r: (r.figures["accuracy_all"].mean, -r.figures["frechet"].mean))
    near = min(rows, key=lambda r: r.figures["frechet"].mean)
    return [accurate] if accurate is near else [accurate, near]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lora", type=Path, default=lora_dir())
    parser.add_argument("--baseline-lora", type=Path, help="after standard fine-tuning of equal length")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), choices=BUDGETS)
    parser.add_argument("--threshold", type=float, default=0.35)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.6])
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scan-captions", type=int, default=256)
    parser.add_argument("--scan-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    captions, few = held_out_captions(args.captions), held_out_captions(args.scan_captions, seed=1)
    pipe = sagediff.load_pipeline("demo")
    groups = sagediff.group_prompts(sagediff.embed_prompts(captions, pipe).vectors, args.threshold)
    members = len(captions) / len(groups)
    # fewer captions have fewer near neighbours: a lower threshold gives the scan groups of the same size
    scan_threshold = threshold_for(sagediff.embed_prompts(few, pipe).vectors, members, 8)
    weights: list[Weights] = ["base", *(["standard"] if args.baseline_lora else [])]
    offered: dict[tuple[int, str], list[Setting]] = {}
    for budget in args.budgets:
        for name in weights:
            offered[budget, name] = independent(budget, name, args.threshold)
        offered[budget, "sage"] = shared(budget, "sage", args.threshold, args.ratios, members)
    scanned = {s: replace(s, threshold=scan_threshold) for settings in offered.values() for s in settings}
    rows = made(args, "scan", few, list(dict.fromkeys(scanned.values())), (args.scan_seed,))
    found = {r.setting: r for r in rows}
    chosen: dict[Setting, None] = {}
    for settings in offered.values():
        for r in best([found[scanned[s]] for s in settings]):
            chosen[replace(r.setting, threshold=args.threshold)] = None
    rows = made(args, "final", captions, list(chosen), tuple(args.seeds))
    rows.sort(key=lambda r: min(args.budgets, key=lambda b: abs(b - r.figures["evaluations_per_image"].mean)))
    (args.out / "table.md").write_text(markdown(rows).split("\nBy how alike")[0], encoding="utf-8")
    (args.out / "table.json").write_text(
        json_text(rows, {"scan": len(few), "captions": len(captions)}), encoding="utf-8"
    )
    (args.out / "frontier.png").write_bytes(frontier(rows))
    print((args.out / "table.md").read_text(encoding="utf-8"))
    print(json.dumps({"table": str(args.out / "table.md"), "plot": str(args.out / "frontier.png")}))


if __name__ == "__main__":
    main()
