"""`python -m sagediff.builtin.emoji.train`: train a denoiser by flow matching; the same command resumes it.

OUT/checkpoint.safetensors, OUT/log.jsonl, OUT/samples/*.png. `--steps` may be raised on a later call, and a
`--cooldown` given for the last of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sagediff.builtin.emoji.batches import CachedBatches
from sagediff.builtin.emoji.cache import Probe
from sagediff.builtin.emoji.denoisers import DENOISERS, predict, use_plain_attention
from sagediff.builtin.emoji.flow import draw_times, mix
from sagediff.builtin.emoji.images import read_rows
from sagediff.builtin.emoji.loop import LoopConfig, bf16_pays, train
from sagediff.builtin.emoji.packages import FLAT_VENDORS, VENDORS
from sagediff.builtin.emoji.sheet import FREE_TEXT, draw_sheet, probe_losses
from sagediff.builtin.emoji.text import encode_captions, load_encoder, unpack_encoder


@dataclass(frozen=True)
class FlowLosses:
    """The loss of one step: squared error of the velocity on a batch from the cache."""

    batches: CachedBatches
    batch_size: int

    def __call__(
        self, model: nn.Module, step: int, rng: np.random.Generator, noise: torch.Generator
    ) -> dict[str, Tensor]:
        batch = self.batches.draw(self.batch_size, rng)
        times = draw_times(self.batch_size, rng)
        epsilon = torch.randn(batch.latents.shape, generator=noise)
        out = predict(model, mix(batch.latents, epsilon, times), times, batch.text, batch.mask)
        return {"velocity": F.mse_loss(out.float(), epsilon - batch.latents)}


class Reporter:
    """Validation losses and, more rarely, a sheet of samples."""

    def __init__(self, cache: Path, vae: Path, out: Path, sheet_every: int) -> None:
        self._probe = Probe.read(cache / "probe.safetensors")
        self._vae = AutoencoderKL.from_pretrained(vae).eval()
        text, mask = encode_captions(*load_encoder(unpack_encoder(cache / "encoder")), FREE_TEXT)
        self._free_text = text.float(), mask
        self._out, self._sheet_every = out, sheet_every

    def __call__(self, model: nn.Module, done: int) -> Mapping[str, float]:
        if done % self._sheet_every == 0:
            draw_sheet(
                model, self._vae, self._probe, self._free_text, self._out / "samples" / f"{done:07d}.png"
            )
        return probe_losses(model, self._probe)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.emoji.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=list(DENOISERS), default="unet")
    parser.add_argument("--vendors", nargs="+", choices=list(VENDORS), default=list(FLAT_VENDORS))
    parser.add_argument("--backgrounds", type=int, default=2, help="as in the cache")
    parser.add_argument("--steps", type=int, default=30000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--cooldown", type=int, default=0, help="last steps, of falling learning rate")
    parser.add_argument("--ema", type=float, default=0.9995)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--sheet-every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = DENOISERS[args.model]()
    use_plain_attention(model)
    batches = CachedBatches(args.cache, read_rows(args.data, args.vendors, ["train"], args.backgrounds))
    config = LoopConfig(
        args.out, args.steps, args.batch_size, args.learning_rate, args.seed, cooldown=args.cooldown, ema=args.ema,
        report_every=args.report_every, bf16=bf16_pays(),
    )  # fmt: skip
    reporter = Reporter(args.cache, args.vae, args.out, args.sheet_every)
    trained = train(config, model, FlowLosses(batches, args.batch_size), reporter)
    if trained is None:
        print("stopped; the same command goes on from the checkpoint", file=sys.stderr)
        return 1
    trained.save_pretrained(args.out / "denoiser")  # type: ignore[operator]
    return 0


if __name__ == "__main__":
    sys.exit(main())
