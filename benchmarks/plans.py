"""Fixed, adaptive and tree plans at equal quality: each tuned on some captions, then run on other, held-out ones.

    python benchmarks/plans.py --out runs/plans
    python benchmarks/plans.py --ways trained --copies 4 --out runs/plans-copies

For each kind of plan, `sagediff tune`'s search finds the one that saves most while accuracy stays within the budget
of independent sampling, on some held-out captions (`--tune-on training`: on ones of training, where everything looks
safer). What it found is then measured on others, three seeds. "given" is a fixed split at the threshold and group
size of docs/results.md, its share ratio searched; "fixed" has threshold, share ratio and group size searched;
"together" gives every group a branch point by its least similar pair; "tree" splits groups into closer ones, so that
all share the first steps and close prompts more. With `--copies` every caption is there that many times, as when
several images per prompt are wanted; "apart" is how different those images are in the judge's features, and tuning
keeps a quarter of what independent sampling has. Trials are kept in the folder: the same command continues after a
stop.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from world_eval import held_out_captions, mean_spread

import sagediff
from sagediff.builtin.scenes import lora_dir
from sagediff.builtin.scenes.scene_perception import WorldPerception, reference_features
from sagediff.builtin.scenes.world import held_out_scenes, training_scenes
from sagediff.cli.tune import EQUAL, equal_prompts, in_words, policy_record
from sagediff.evaluation.comparison import as_tensor
from sagediff.evaluation.diversity import group_diversity
from sagediff.evaluation.frechet import frechet_distance
from sagediff.evaluation.search import FAMILIES, Measured, Search, Trial, tune
from sagediff.pipelines.placement import open_pipeline
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import embed_prompts

THRESHOLDS = (-1.0, 0.0, 0.2, 0.35, 0.5)
SIZES = (8, 32)
PLANS = ("given", *FAMILIES)
GIVEN = 0.35  # of docs/results.md, with groups of up to 8
WAYS: dict[str, dict[str, Any]] = {
    "trained": {"scheduler": None, "lora": True, "steps": 16, "guidance": 1.0, "noise": 1.0},
    "untrained": {"scheduler": "dpm++-beta", "lora": False, "steps": 20, "guidance": 4.0, "noise": 0.0},
}


def split(captions: int, tuning: int, tune_on: str) -> tuple[list[str], list[str]]:
    """Held-out captions to measure on, and others to tune on: as many as wanted, or what is left."""
    measured = held_out_captions(captions)
    scenes = held_out_scenes() if tune_on == "held-out" else training_scenes()
    others = [scene.caption for scene in scenes if scene.caption not in set(measured)]
    order = np.random.default_rng(0).permutation(len(others))[:tuning]
    return measured, [others[i] for i in sorted(order)]


class Runner:
    """Policies on one pipeline and one set of captions."""

    def __init__(
        self, pipe: Any, captions: list[str], way: dict[str, Any], seeds: list[int], kept: Path
    ) -> None:
        self.pipe, self.captions, self.way, self.seeds = pipe, captions, way, seeds
        self.vectors = embed_prompts(captions, pipe, None).vectors
        self.perception = WorldPerception()
        self.kept = kept
        self.copies = equal_prompts(captions)
        self.known: dict[str, dict[str, Any]] = (
            json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        )

    def saving(self, policy: Sharing) -> float:
        rows = 1 if self.way["guidance"] == 1 else 2
        return policy.plan(self.vectors, self.way["steps"], rows).cost_saving

    def encoder(self, texts: list[str]) -> Any:
        """The embeddings that are there already."""
        rows = dict(zip(self.captions, self.vectors, strict=True))
        return np.stack([rows[text] for text in texts])

    def images(self, policy: Sharing, seed: int) -> Any:
        sampler = sagediff.SharedSampler(
            self.pipe, policy.threshold, policy.share_ratio, policy.max_group_size,
            handover_noise=self.way["noise"], encoder=self.encoder,
            rungs=policy.rungs, parting=policy.parting,
        )  # fmt: skip
        found = sampler(self.captions, self.way["steps"], self.way["guidance"], seed)
        return as_tensor(found.images)

    def right(self, images: Any) -> float:
        return float(self.perception.accuracy(images, self.captions)["all"].float().mean())

    def apart(self, images: Any) -> list[float]:
        """How far apart the images of equal captions are; nothing where none repeats."""
        if not self.copies:
            return []
        return [group_diversity(self.perception.features(images), self.copies) or 0.0]

    def name(self, policy: Sharing) -> str:
        return json.dumps([policy_record(policy), len(self.captions), len(self.copies), self.seeds])

    def keep(self) -> None:
        self.kept.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")

    def measured(self, policy: Sharing) -> Measured:
        name = self.name(policy)
        if name not in self.known:
            quality, apart = [], []
            for seed in self.seeds:
                images = self.images(policy, seed)
                quality.append(self.right(images))
                apart += self.apart(images)
            self.known[name] = {"quality": quality, "apart": apart}
            self.keep()
        known = self.known[name]
        return Measured(tuple(known["quality"]), tuple(known["apart"]))

    def figures(self, policy: Sharing) -> dict[str, Any]:
        """Saving, accuracy, Frechet distance, CLIP score and distance of equal captions' images over the seeds."""
        if (name := self.name(policy)) in self.known:
            return self.known[name]
        real = reference_features(self.captions)
        rows: dict[str, list[float]] = {"right": [], "frechet": [], "clip": [], "apart": []}
        for seed in self.seeds:
            images = self.images(policy, seed)
            rows["right"].append(self.right(images))
            rows["frechet"].append(frechet_distance(self.perception.features(images), real))
            rows["clip"].append(float(self.perception.alignment(images, self.captions).mean()))
            rows["apart"] += self.apart(images)
        found = {name: mean_spread(values) for name, values in rows.items() if values}
        self.known[name] = {"saving": self.saving(policy)} | found
        self.keep()
        return self.known[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS))
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--tune-on", default="held-out", choices=("held-out", "training"))
    parser.add_argument("--tuning-captions", type=int, default=208)
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument(
        "--copies", type=int, default=1, help="images per caption; of the captions fewer then"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-trials", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/plans"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for way in args.ways:
        options = WAYS[way]
        lora = lora_dir() if options["lora"] else None
        pipe = open_pipeline("demo", options["scheduler"], "auto", "auto", lora)
        kept = args.out / f"trials-{way}.json"
        measured, others = split(
            args.captions // args.copies, args.tuning_captions // args.copies, args.tune_on
        )
        tuning = Runner(pipe, others * args.copies, options, args.tuning_seeds, kept)
        test = Runner(pipe, measured * args.copies, options, args.seeds, args.out / f"figures-{way}.json")
        thresholds = tuple(args.thresholds) + ((EQUAL,) if args.copies > 1 else ())
        steps = options["steps"]
        ratios = tuple(k / steps for k in range(steps // 10, steps * 9 // 10 + 1, max(1, steps // 16)))
        base = Sharing()
        for family in ("independent", *args.plans):
            if family == "independent":
                policy = Sharing(share_ratio=0.0)
            else:
                grid, sizes = ((GIVEN,), ()) if family == "given" else (thresholds, SIZES)
                searched: tuple[Any, ...] = tuple(
                    dict.fromkeys(("fixed", family if family in FAMILIES else "fixed"))
                )
                search = Search(base, grid, ratios, args.budget, searched, args.max_trials, sizes)

                def told(trial: Trial, way: str = way, family: str = family) -> None:
                    print(
                        f"{way}, {family}: {trial.cost_saving:.1%} saved, {trial.mean:.2%} right, "
                        f"{trial.apart or 0:.4f} apart, {in_words(trial.policy)}",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip

                policy = tune(search, tuning.saving, tuning.measured, told).best.policy
            row = {"way": way, "plan": family, "policy": policy_record(policy), "words": in_words(policy)}
            rows.append(row | test.figures(policy))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            (args.out / "plans.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    apart_title, apart_rule = ("apart | ", "--- | ") if args.copies > 1 else ("", "")
    print(
        f"| weights | plan | found | saved | all four right | Frechet distance | CLIP score | {apart_title}"
    )
    print(f"| --- | --- | --- | --- | --- | --- | --- | {apart_rule}")
    for row in rows:
        right, distance, clip = row["right"], row["frechet"], row["clip"]
        apart = f" {row['apart']['mean']:.4f} ± {row['apart']['spread']:.4f} |" if "apart" in row else ""
        print(
            f"| {row['way']} | {row['plan']} | {row['words']} | {row['saving']:.1%} "
            f"| {right['mean']:.1%} ± {right['spread']:.1%} | {distance['mean']:.3f} ± {distance['spread']:.3f} "
            f"| {clip['mean']:.4f} ± {clip['spread']:.4f} |{apart}"
        )


if __name__ == "__main__":
    main()
