"""What sharing is worth on a built-in model: as the paper compares, by itself, on the frontier, and by likeness.

    python -m sagediff.builtin.emoji.training data --out runs/emoji && ... --splits train   # images to train on
    python benchmarks/worth_of_sharing.py --model emoji --data runs/emoji/train --real runs/emoji/data --out runs/worth

All in one run, on the same captions, groups and seeds:

a. 40 % of 20 steps shared, SAGE training against standard fine-tuning of equal length, each with the solver, guidance
   and noise at the hand-over that a small search on other captions found best for it;
b. the SAGE weights without guidance: independent, and sharing as much as saves at least 25.5 % and 40 %;
c. the frontier: at each number of evaluations per image the best shared and the best independent setting of any
   weights, steps and guidance interval, found on the other captions; and the evaluations that independent sampling
   needs for the same distance;
d. by how alike a group's prompts are: a fixed split against the adaptive and the tree plan of the same error, found by
   `tune --by predictions`'s way;
and the terms of the training's objective, each left out of a short training.

Every finished cell and LoRA is kept: the same command goes on after a stop. `--workers N --worker K`, for each K from
0 to N - 1 in a process of its own, makes cells of each part side by side, once the LoRAs and the search are done
(`--only search`); the command without them then writes the tables.

With the defaults, some 0.9 million denoiser rows of the emoji model and 65,000 images to look at. On a core that had
other work to do as well, a row took 18 ms, and an image 29 ms to decode and 95 ms to look at: some 6 hours of such a
core, and the training besides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ablation import STANDARD, VARIANTS
from worth_settings import (
    WORLDS,
    World,
    ablation,
    by_likeness,
    frontier_candidates,
    paper_candidates,
    winners,
    worth,
)
from worth_tables import plots, tables

from sagediff.builtin.world_judges import judge_of
from sagediff.evaluation.comparison import Bench, rows_of, run_bench, yardstick
from sagediff.evaluation.error_budget import Choice
from sagediff.evaluation.figures import Seen
from sagediff.evaluation.grid import Setting, Weights
from sagediff.evaluation.perception import Perception
from sagediff.evaluation.prediction_gaps import GapRunner
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.result_store import CellStore
from sagediff.evaluation.summary import Row
from sagediff.files.atomic import write_text
from sagediff.files.digest import file_digest, texts_digest
from sagediff.files.imagefolder import open_images, read_imagefolder
from sagediff.pipelines.lora import WEIGHT_NAME, lora_file
from sagediff.pipelines.model_source import built_in_folder
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.plan.grouping import group_prompts
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import embed_prompts
from sagediff.training.captioned_images import load_images
from sagediff.training.loop import train
from sagediff.training.train_config import SageWeights, TrainConfig


def trained(args: argparse.Namespace, world: World, name: str, steps: int, seed: int = 0) -> Path:
    """The LoRA of "sage", of standard fine-tuning or of a variant of the ablation, made unless it is there."""
    out = args.out / "lora" / f"{name.replace(' ', '-')}-{steps}"
    if not (out / WEIGHT_NAME).is_file():
        weights = VARIANTS.get(name) or {}
        config = TrainConfig(
            out, steps=steps, rank=args.rank, lora_layers="all", learning_rate=args.learning_rate,
            train_batch_size=args.train_batch_size, threshold=world.threshold, report_to="none", seed=seed,
            mixed_precision=args.mixed_precision, weights=SageWeights(**weights),
            objective="standard" if name == STANDARD else "sage",
        )  # fmt: skip
        pipe = open_pipeline(ModelOptions(args.model, no_lora=True))
        train(pipe, load_images(str(args.data)), config, args.model)
    return out


UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass
class Comparison:
    """The captions of one half of the work (searched or measured on), and what their images are measured by."""

    args: argparse.Namespace
    world: World
    captions: list[str]
    loras: dict[str, Path | None]
    perception: Perception

    def pipeline(self, weights: Weights) -> Any:
        lora = self.loras[weights]
        return open_pipeline(
            ModelOptions(self.args.model, lora=() if lora is None else (str(lora),), no_lora=lora is None)
        )

    @cached_property
    def vectors(self) -> Any:
        """(N, D) of the base model's encoder."""
        return embed_prompts(self.captions, self.pipeline("base"), None).vectors

    def plan_of(self, sharing: Sharing, steps: int, guided: bool) -> SharePlan:
        """What a sharing costs on these captions."""
        groups = self._groups(sharing.threshold, sharing.max_group_size)
        return sharing.plan_groups(groups, steps, 2 if guided else 1, self.vectors)

    def _groups(self, threshold: float, size: int) -> list[list[int]]:
        known = self.__dict__.setdefault("_known", {})
        if (threshold, size) not in known:
            known[threshold, size] = group_prompts(self.vectors, threshold, size)
        found: list[list[int]] = known[threshold, size]
        return found

    def rows(self, folder: str, settings: Sequence[Setting], seeds: Sequence[int]) -> list[Row]:
        """Cells made where they are missing, and the rows."""
        ordered = sorted(dict.fromkeys(settings), key=lambda one: one.weights)  # each weights loaded once
        bench = Bench(self.captions, ordered, tuple(seeds), self.world.guidance, self.pipeline)
        store = CellStore(self.args.out / folder)
        about = {"model": self.args.model, "captions": texts_digest(self.captions)}
        content = {
            name: file_digest(lora_file(lora)) for name, lora in self.loras.items() if lora is not None
        }
        content["model"] = file_digest(built_in_folder(self.args.model) / "weights/pipeline" / UNET)
        store.check(about, resume=True)
        store.check_content(content)
        store.begin(about, content)
        real = judge_of(self.args.model).reference_features(self.captions)
        measure_by = yardstick(bench, self.vectors, self.perception, Reference(real, paired=True))
        mine = ordered[self.args.worker :: self.args.workers]
        start = time.process_time()
        for one, seed in run_bench(replace(bench, settings=mine), store, self.vectors, measure_by):
            cell = store.read(one, seed)
            assert cell is not None
            seconds, start = time.process_time() - start, time.process_time()
            print(
                f"{one.method}, {one.words()}, guidance {one.guidance_words()}, seed {seed}: "
                f"{cell['figures']['evaluations_per_image']:.2f} evaluations per image, Frechet distance "
                f"{cell['figures']['frechet']:.3f}; {seconds:.0f} s of a core",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return rows_of(bench, store)


def adaptive(search: Comparison, fixed: Setting) -> dict[str, Sharing]:
    """The adaptive and the tree plan of a fixed split's error, from the model's own predictions."""
    guidance, base, world = fixed.guidance_scale, fixed.sharing, search.world
    pipe = search.pipeline(fixed.weights)
    runner = GapRunner(pipe, search.captions, search.vectors, fixed.num_steps, guidance, base, (0, 1, 2))
    thresholds = tuple(sorted({world.threshold + step for step in (-0.2, -0.1, 0.0, 0.1, 0.2)}))
    ratios = tuple(k / fixed.num_steps for k in range(1, round(0.8 * fixed.num_steps) + 1))
    gaps = runner.measure(thresholds, round(ratios[-1] * fixed.num_steps) - 1, search.args.evaluations)
    if gaps is None:
        return {}
    found = {}
    for name, families in (("adaptive", ("fixed", "together")), ("tree", ("fixed", "tree"))):
        choice = Choice(
            base, thresholds, ratios, (8, 32), families, search.vectors,  # type: ignore[arg-type]
            lambda policy: search.plan_of(policy, fixed.num_steps, guidance != 1.0),
        )  # fmt: skip
        found[name] = choice.best(gaps.model, choice.error_of(gaps.model, base)).policy
    return found


def real_figures(args: argparse.Namespace, captions: list[str], perception: Perception, groups: Any) -> Any:
    """What the artwork itself gets, which no model's images should be ahead of; None without its folder."""
    if args.real is None:
        return None
    found = read_imagefolder(args.real)
    files = dict(zip(found.captions, found.files, strict=True))
    images = open_images([files[caption] for caption in captions], (64, 64))
    import torch

    return Seen.by(perception, torch.from_numpy(images), captions).figures(groups)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji", choices=list(WORLDS))
    parser.add_argument("--data", type=Path, help="imagefolder to train on")
    parser.add_argument("--real", type=Path, help="imagefolder with the held-out artwork")
    parser.add_argument("--standard-lora", type=Path, help="in place of training one")
    parser.add_argument("--sage-lora", type=Path, help="in place of training one")
    parser.add_argument("--captions", type=int, default=1024, help="to measure on")
    parser.add_argument("--search-captions", type=int, default=96)
    parser.add_argument("--ablation-captions", type=int, default=192)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=int, nargs="+", default=[6, 10, 16, 24])
    parser.add_argument("--evaluations", type=int, default=1200, help="to look at predictions")
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--ablation-steps", type=int, default=120)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--train-batch-size", type=int, default=32)
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--steps", type=int, default=8, help="of parts b and d")
    parser.add_argument("--variants", nargs="*", default=[*VARIANTS, STANDARD], choices=[*VARIANTS, STANDARD])
    parser.add_argument("--only", choices=("search", "abcd", "ablation"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/worth"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    world, judge = WORLDS[args.model], judge_of(args.model)
    captions = judge.held_out_captions(args.captions + args.search_captions)
    order = np.random.default_rng(0).permutation(len(captions)).tolist()
    measured = [captions[i] for i in sorted(order[: args.captions])]
    others = [captions[i] for i in sorted(order[args.captions :])]
    loras: dict[str, Path | None] = {
        "base": None,
        "standard": args.standard_lora or trained(args, world, STANDARD, args.train_steps),
        "sage": args.sage_lora or trained(args, world, "sage", args.train_steps),
    }
    perception = judge.perception("cpu")
    search = Comparison(args, world, others, loras, perception)
    test = Comparison(args, world, measured, loras, perception)
    parts: dict[str, list[Row]] = {}
    if args.only != "ablation":
        chosen = chosen_settings(search, test, args)
        if args.only == "search":
            return
        for part, settings in chosen.items():
            parts[part] = test.rows("cells", settings, args.seeds)
    if args.only in (None, "ablation"):
        few = replace(test, captions=measured[: args.ablation_captions])
        for variant in args.variants:
            made = (
                None
                if VARIANTS.get(variant, {}) is None
                else trained(args, world, variant, args.ablation_steps)
            )
            one = replace(few, loras=loras | {"sage": made})
            parts[f"ablation: {variant}"] = one.rows(
                f"ablation/{variant.replace(' ', '-')}", ablation(world), args.seeds
            )
    if args.workers > 1:
        return
    groups = group_prompts(test.vectors, world.threshold, world.max_group_size)
    real = real_figures(args, measured, perception, groups)
    record = {name: [row.record() for row in rows] for name, rows in parts.items()}
    about = {"model": args.model, "captions": len(measured), "seeds": args.seeds, "judge": perception.name}
    write_text(args.out / "results.json", json.dumps(about | {"real": real} | record, indent=1) + "\n")
    text = tables(parts, real, args.budgets)
    write_text(args.out / "tables.md", text)
    for name, image in plots(parts).items():
        (args.out / name).write_bytes(image)
    print(text)


def chosen_settings(
    search: Comparison, test: Comparison, args: argparse.Namespace
) -> dict[str, list[Setting]]:
    """The settings of parts a to d; the search on the other captions runs where it has not."""
    kept = args.out / "chosen.json"
    known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    candidates: dict[str, list[Setting]] = {"a": paper_candidates(search.world)}
    for budget, settings in frontier_candidates(search.world, test.plan_of, args.budgets).items():
        candidates[f"c {budget}"] = settings
    if not candidates.keys() <= known.keys():
        every = [one for settings in candidates.values() for one in settings]
        found = {row.setting: row for row in search.rows("search", every, args.seeds[:1])}
        for name, settings in candidates.items():
            rows = [found[one] for one in settings]
            best = [*winners(rows, False), *winners(rows, True)]
            if name == "a":
                of = [[row for row in rows if row.setting.weights == w] for w in ("standard", "sage")]
                best = [winners(mine, True)[0] for mine in of]
            known[name] = [one.key for one in best]
        write_text(kept, json.dumps(known, indent=1) + "\n")
    chosen = {
        name: [one for key in known[name] for one in settings if one.key == key]
        for name, settings in candidates.items()
    }
    chosen["b"] = worth(search.world, test.plan_of, args.steps)
    if "d" not in known:
        known["d"] = {k: p.record() for k, p in adaptive(search, chosen["b"][1]).items()}
        write_text(kept, json.dumps(known, indent=1) + "\n")
    policies = {name: Sharing.merged(Sharing.layer(policy)) for name, policy in known["d"].items()}
    chosen["d"] = by_likeness(chosen["b"][1], policies)
    return chosen


if __name__ == "__main__":
    main()
