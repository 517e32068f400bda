"""What is each term of the SAGE objective worth? Short runs, each without one of them.

    python -m sagediff.builtin.scenes.dataset --out runs/world-1 --renders 1
    python benchmarks/ablation.py --data runs/world-1 --out runs/ablation --steps 200 --seeds 0 1 2

Every run starts from the same model, sees the same images in the same order and takes as many steps. Then it is
sampled in four ways on the same held-out captions: independently and shared with guidance, and shared and
independently in few steps without it, as the shipped LoRA is. Training that is already there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_eval import built_in, mean_spread

import sagediff
from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions, reference_features
from sagediff.evaluation.frechet import frechet_distance
from sagediff.evaluation.sampled_images import as_tensor
from sagediff.files.lora_files import WEIGHT_NAME
from sagediff.pipelines.placement import open_pipeline
from sagediff.training.captioned_images import load_images
from sagediff.training.loop import train
from sagediff.training.train_config import SageWeights, TrainConfig


@dataclass(frozen=True)
class Sampling:
    """One way to sample: of `steps` the first `branch` together; guidance 4 or none, noise at the hand-over."""

    steps: int
    branch: int
    unguided: float = 0.0
    handover_noise: float = 0.0


SAMPLINGS: dict[str, Sampling] = {
    "independent, 20 steps, guidance 4": Sampling(20, 0),
    "20 steps, 10 together, guidance 4 after": Sampling(20, 10),
    "8 steps, 4 together, no guidance": Sampling(8, 4, 1.0, 1.0),
    "independent, 4 steps, no guidance": Sampling(4, 0, 1.0),
}
ALL = {"shared": 0.3, "soft": 0.3}  # weights of the two targets that the default leaves out
VARIANTS: dict[str, dict[str, float] | None] = {
    "untrained": None,
    "all terms": ALL,
    "without the shared target": ALL | {"shared": 0.0},
    "without the soft target": ALL | {"soft": 0.0},
    "without both": {},
    "without the branch term": ALL | {"branch": 0.0},
    "without the hand-over": ALL | {"handover": 0.0},
    "hand-over states from the mean image": ALL | {"rollout_rate": 0.0},
}
STANDARD = "standard fine-tuning"


def trained(name: str, args: argparse.Namespace) -> Path | None:
    """The LoRA of a variant, made now unless it is there."""
    weights = {} if name == STANDARD else VARIANTS[name]
    if weights is None:
        return None
    out = args.out / name.replace(" ", "-")
    if not (out / WEIGHT_NAME).is_file():
        config = TrainConfig(
            out, steps=args.steps, rank=args.rank, lora_layers="all", learning_rate=args.learning_rate,
            train_batch_size=args.train_batch_size, threshold=args.train_threshold, report_to="none",
            mixed_precision=args.mixed_precision, checkpointing_steps=args.steps, seed=args.seed,
            lr_warmup_steps=args.steps // 10, weights=SageWeights(**weights),
            objective="standard" if name == STANDARD else "sage",
        )  # fmt: skip
        pipe = sagediff.load_pipeline("demo")
        pipe.set_progress_bar_config(disable=True)
        train(pipe, load_images(args.data), config, "demo")
    return out / WEIGHT_NAME


def measure(
    pipe: Any, perception: WorldPerception, captions: list[str], args: argparse.Namespace, sampling: Sampling
) -> dict[str, Any]:
    """Accuracy and Frechet distance over the seeds."""
    real = reference_features(captions)
    sampler = sagediff.SharedSampler(
        pipe, threshold=args.threshold, share_ratio=sampling.branch / sampling.steps,
        unguided=sampling.unguided, handover_noise=sampling.handover_noise,
    )  # fmt: skip
    right, distance = [], []
    for seed in args.seeds:
        result = sampler(captions, num_inference_steps=sampling.steps, guidance_scale=4.0, seed=seed)
        images = as_tensor(result.images)
        right.append(float(perception.accuracy(images, captions)["all"].float().mean()))
        distance.append(frechet_distance(perception.features(images), real))
    return {
        "evaluations_per_image": result.plan.evaluations / len(captions),
        "all": mean_spread(right),
        "frechet": mean_spread(distance),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder that sagediff.builtin.scenes.dataset wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, STANDARD], choices=[*VARIANTS, STANDARD])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--train-batch-size", type=int, default=32)
    parser.add_argument("--train-threshold", type=float, default=0.35)
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=0.35, help="of sampling")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of sampling")
    args = parser.parse_args()
    captions, perception = held_out_captions(args.captions), WorldPerception()
    rows = []
    for name in args.variants:
        pipe = open_pipeline(built_in(trained(name, args)))
        row = {"variant": name} | {
            way: measure(pipe, perception, captions, args, sampling) for way, sampling in SAMPLINGS.items()
        }
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    heads = [f"{way}: {what}" for way in SAMPLINGS for what in ("all four right", "Frechet distance")]
    print("| objective | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
    for row in rows:
        cells = []
        for way in SAMPLINGS:
            all_right, distance = row[way]["all"], row[way]["frechet"]
            cells.append(f"{all_right['mean']:.1%} ± {all_right['spread']:.1%}")
            cells.append(f"{distance['mean']:.2f} ± {distance['spread']:.2f}")
        print(f"| {row['variant']} | " + " | ".join(cells) + " |")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ablation.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
