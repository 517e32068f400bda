"""A small FLUX transformer, trained on the built-in world: for measurements that random weights cannot answer.

    python benchmarks/small_dit.py train --out runs/small-dit
    python benchmarks/small_dit.py score --weights runs/small-dit/transformer

Flow matching on the latents of the built-in pipeline's VAE, packed as `FluxPipeline` packs them, with its text
encoder's tokens and pooled state as conditions; training captions only, a tenth of them dropped. Four double blocks and
eight single ones of width 128, as the random weights of `composition.py`; 2400 batches of 32. About 40 minutes on one
CPU core; the same command with `--resume` continues after a stop. Needs the font Noto Color Emoji. `score` samples
held-out captions, lets the built-in judge read them, and prints how many it reads as captioned.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor
from world_eval import built_in, mean_spread

from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions
from sagediff.builtin.scenes.tokenizer import MAX_LENGTH
from sagediff.builtin.scenes.training.scene_images import SceneImages
from sagediff.builtin.scenes.training.stages import TEXT_DIM
from sagediff.builtin.training.architectures import LATENT_CHANNELS
from sagediff.builtin.training.stage_loop import LoopConfig, bf16_pays, train, write_tensors
from sagediff.pipelines.placement import open_pipeline

SIDE = 16  # of a latent
DROPPED = 0.1  # part of the captions, for guidance


def new_transformer(layers: int = 4) -> FluxTransformer2DModel:
    """Blocks start as the identity, as DiT's do (adaLN-Zero)."""
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS, num_layers=layers, num_single_layers=2 * layers, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=TEXT_DIM, pooled_projection_dim=TEXT_DIM, guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    for block in transformer.single_transformer_blocks:
        torch.nn.init.zeros_(block.norm.linear.weight)
        torch.nn.init.zeros_(block.norm.linear.bias)
    return transformer


@dataclass(frozen=True)
class World:
    """The built-in pipeline, whose text encoder and VAE the transformer works with."""

    demo: Any

    @classmethod
    def open(cls) -> World:
        return cls(open_pipeline(built_in(device="cpu", dtype="float32")))

    @torch.no_grad()
    def conditions(self, captions: list[str]) -> dict[str, Tensor]:
        """As `FluxPipeline` takes them: (N, 24, 128) and (N, 128)."""
        ids = self.demo.tokenizer(
            captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
        ).input_ids
        read = [self.demo.text_encoder(part) for part in ids.split(256)]
        return {
            "prompt_embeds": torch.cat([part.last_hidden_state for part in read]),
            "pooled_prompt_embeds": torch.cat([part.pooler_output for part in read]),
        }

    def inputs(self, captions: list[str], guidance: float = 1.0) -> dict[str, Any]:
        """Arguments of the pipeline; `guidance` above 1 calls the transformer a second time, with no caption."""
        found: dict[str, Any] = self.conditions(captions)
        if guidance > 1:
            empty = self.conditions([""])
            found |= {
                f"negative_{name}": empty[name].expand_as(rows).clone() for name, rows in found.items()
            } | {"true_cfg_scale": guidance}
        return found | {"height": SIDE * 8, "width": SIDE * 8, "output_type": "latent"}

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) in [-1, 1] -> (N, 64, 32), scaled and packed."""
        vae = self.demo.vae
        encoded = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        return FluxPipeline._pack_latents(encoded, len(images), LATENT_CHANNELS, SIDE, SIDE)

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        """(N, 64, 32) -> (N, 3, 64, 64) in [0, 1], in eighths as images have them."""
        vae = self.demo.vae
        parts = []
        for part in latents.split(64):
            # without a VAE of its own, the pipeline takes a latent for an eighth of an image's side
            unpacked = FluxPipeline._unpack_latents(part, SIDE * 8, SIDE * 8, 8) / vae.config.scaling_factor
            parts.append(vae.decode(unpacked).sample.add(1).div(2).clamp(0, 1).mul(255).round().div(255))
        return torch.cat(parts)


def pipeline(transformer: FluxTransformer2DModel, shift: float) -> FluxPipeline:
    """Takes embeddings, gives latents: it has no text encoder and no VAE. Size to ask for: `SIDE * 8`."""
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer.eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train_transformer(args: argparse.Namespace) -> Path:
    """Flow matching; times are drawn logit-normally, evenly over the batch."""
    torch.manual_seed(args.seed)
    world, images, transformer = World.open(), SceneImages("cpu"), new_transformer()
    captions = [scene.caption for scene in images.scenes]
    told = world.conditions([*captions, ""])  # the last row is the empty caption
    known = args.out / "latents.safetensors"
    if not known.is_file():
        rng = np.random.default_rng([args.seed, 5])
        rows = [
            world.latents(images.draw(images.scenes[start : start + 256], rng)).half()
            for _ in range(args.renders)
            for start in range(0, len(captions), 256)
        ]
        write_tensors(known, {"latents": torch.cat(rows)})
    latents = load_file(known)["latents"].unflatten(0, (-1, len(captions)))  # (renders, captions, 64, 32)
    places = FluxPipeline._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, "cpu", torch.float32)
    words = torch.zeros(MAX_LENGTH, 3)

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        which = torch.from_numpy(rng.integers(len(captions), size=args.batch_size))
        clean = latents[torch.from_numpy(rng.integers(len(latents), size=args.batch_size)), which].float()
        which = torch.where(torch.from_numpy(rng.random(args.batch_size) < DROPPED), len(captions), which)
        even = (
            torch.arange(args.batch_size) + torch.rand(args.batch_size, generator=noise)
        ) / args.batch_size
        t = torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)).sigmoid()
        gone = torch.randn(clean.shape, generator=noise)
        predicted = transformer(
            hidden_states=clean.lerp(gone, t[:, None, None]), timestep=t, img_ids=places, txt_ids=words,
            encoder_hidden_states=told["prompt_embeds"][which],
            pooled_projections=told["pooled_prompt_embeds"][which], return_dict=False,
        )[0]  # fmt: skip
        return {"velocity": F.mse_loss(predicted.float(), gone - clean)}

    warmup = max(1, round(0.05 * args.steps))
    loop = LoopConfig(
        "transformer", args.out, args.steps, args.learning_rate, args.seed, warmup, args.steps - warmup, ema=0.998,
        resume=args.resume, bf16=bf16_pays("cpu"),
    )  # fmt: skip
    trained = train(loop, transformer, losses)
    assert isinstance(trained, FluxTransformer2DModel)
    trained.save_pretrained(args.out / "transformer")
    return Path(args.out / "transformer")


def score(args: argparse.Namespace) -> dict[str, Any]:
    """Part of the images that the judge reads as captioned, by attribute."""
    world, perception = World.open(), WorldPerception()
    captions = held_out_captions(args.captions)
    inputs = world.inputs(captions, args.guidance)
    found: dict[str, Any] = {}
    for shift in args.shifts:
        pipe = pipeline(FluxTransformer2DModel.from_pretrained(args.weights), shift)
        runs: list[dict[str, float]] = []
        for seed in args.seeds:
            generators = [torch.Generator().manual_seed(seed * 100_003 + i) for i in range(len(captions))]
            latents = pipe(**inputs, num_inference_steps=args.steps, generator=generators).images
            images = world.images(latents)
            right = perception.accuracy(images, captions)
            runs.append({name: float(rows.float().mean()) for name, rows in right.items()})
        found[f"shift {shift:g}"] = {name: mean_spread([run[name] for run in runs]) for name in runs[0]}
        print(f"shift {shift:g}", json.dumps(found[f"shift {shift:g}"]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    does = parser.add_subparsers(dest="does", required=True)
    training = does.add_parser("train")
    training.add_argument("--out", type=Path, default=Path("runs/small-dit"))
    training.add_argument("--steps", type=int, default=2400)
    training.add_argument("--batch-size", type=int, default=32)
    training.add_argument("--learning-rate", type=float, default=1e-3)
    training.add_argument("--renders", type=int, default=4, help="images of every caption")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--resume", action="store_true")
    scoring = does.add_parser("score")
    scoring.add_argument("--weights", type=Path, default=Path("runs/small-dit/transformer"))
    scoring.add_argument("--captions", type=int, default=128)
    scoring.add_argument("--steps", type=int, default=28)
    scoring.add_argument("--guidance", type=float, default=1.0)
    scoring.add_argument("--shifts", type=float, nargs="+", default=[1.0, 3.0])
    scoring.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if args.does == "train":
        print(train_transformer(args))
    else:
        score(args)


if __name__ == "__main__":
    main()
