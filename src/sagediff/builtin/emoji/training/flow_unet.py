"""The stage `unet`: the denoiser by flow matching, on states (1 - t) image + t noise, with noise - image as target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from sagediff.builtin.emoji.training.emoji_pipeline import new_pipeline
from sagediff.builtin.emoji.training.emoji_stage import EmojiStageConfig
from sagediff.builtin.emoji.training.latent_cache import CachedBatches, Probe
from sagediff.builtin.emoji.training.latents import decode
from sagediff.builtin.training.architectures import new_unet
from sagediff.builtin.training.stage_command import require
from sagediff.builtin.training.stage_loop import train
from sagediff.files.atomic import writing
from sagediff.pipelines.sentence_encoder import TEXT_WIDTH, load_encoder, load_tokenizer

TIMESTEPS = 1000  # the pipeline's schedulers tell time t as 1000 t
FREE_TEXT = (
    "a happy robot cat", "a red heart with an arrow in Noto style", "a green apple, Twemoji style",
    "a smiling sun wearing sunglasses", "an astronaut riding a horse", "a blue car on a pale yellow background",
    "a slice of pizza on a black background", "a crying dog face",
)  # fmt: skip
COLUMNS = 8  # of a sheet


def train_unet(config: EmojiStageConfig) -> Path:
    """Writes OUT/unet, and sheets of samples into OUT/samples on the way."""
    require(config.out, ("vae",), "train the stage `autoencoder` into the same --out")
    batch_size = config.batch_size or 32
    batches = CachedBatches(config.out / "latents", config.rows(["train"]))
    torch.manual_seed(config.seed or 0)
    unet = new_unet(TEXT_WIDTH)
    if config.device == "cpu":  # two matrix products: there faster than the fused kernel's backward pass
        unet.set_attn_processor(AttnProcessor())

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        latents, text = (part.to(config.device) for part in batches.draw(batch_size, rng))
        times = draw_times(batch_size, rng).to(config.device)
        epsilon = torch.randn(latents.shape, generator=noise, device=config.device)
        out = unet(mix(latents, epsilon, times), times * TIMESTEPS, text).sample
        return {"velocity": F.mse_loss(out.float(), epsilon - latents)}

    loop = config.loop(
        "unet", 40_000, 8e-4, ema=0.9995, warmup=300, cooldown=config.cooldown,
        report_every=config.report_every, memory_format=torch.contiguous_format,
    )  # fmt: skip
    trained = train(loop, unet, losses, Reporter(config))
    with writing(config.out / "unet") as partial:
        trained.save_pretrained(partial)
    return config.out / "unet"


def draw_times(count: int, rng: np.random.Generator) -> Tensor:
    """(N,) in (0, 1): logit-normal (arXiv 2403.03206), stratified, so that batches differ less; a tenth is uniform."""
    places = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count)
    normal = torch.sigmoid(torch.special.ndtri(places.clamp(1e-6, 1 - 1e-6)))
    uniform = torch.from_numpy(rng.random(count))
    return torch.where(torch.from_numpy(rng.random(count) < 0.1), uniform, normal).float()


def mix(images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The states at `times` (N,)."""
    return torch.lerp(images, noise, times.view(-1, 1, 1, 1))


class Reporter:
    """Validation losses and, more rarely, a sheet of samples: the same captions and noise each time."""

    def __init__(self, config: EmojiStageConfig) -> None:
        require(config.out / "latents", ("probe.safetensors",), "run the stage `latents` into the same --out")
        self._probe = Probe.read(config.out / "latents" / "probe.safetensors")
        self._vae = AutoencoderKL.from_pretrained(config.out / "vae").eval()
        self._text = load_tokenizer(), load_encoder()
        self._config = config

    def __call__(self, unet: UNet2DConditionModel, done: int) -> Mapping[str, float]:
        if done % self._config.sheet_every == 0:
            sheet = draw_sheet(unet, self._vae, self._text, self._probe)
            path = self._config.out / "samples" / f"{done:07d}.png"
            path.parent.mkdir(exist_ok=True)
            sheet.save(path)
        return probe_losses(unet, self._probe)


def draw_sheet(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text: tuple[object, object], probe: Probe
) -> Image.Image:
    """Rows of eight: seen captions, held-out pairs, unseen names, each above its artwork, then free text."""
    splits = ("train", "held_out", "unseen")
    chosen = [[i for i, own in enumerate(probe.splits) if own == split][:COLUMNS] for split in splits]
    prompts = [probe.captions[i] for row in chosen for i in row] + list(FREE_TEXT)
    device = unet.device
    pipe = new_pipeline(unet, vae, *text).to(device)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    made = pipe(prompts, num_inference_steps=20, guidance_scale=3.5, generator=seeds, output_type="pt").images
    rows = list((made.cpu().float() * 255).round().to(torch.uint8).split([*map(len, chosen), len(FREE_TEXT)]))
    for number, places in reversed(list(enumerate(chosen))):
        rows.insert(number + 1, decode(vae, probe.latents[places].to(device)).cpu())
    filled = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, COLUMNS - len(row))) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in filled]
    return Image.fromarray(torch.cat(lines, dim=1).permute(1, 2, 0).contiguous().numpy())


@torch.no_grad()
def probe_losses(unet: UNet2DConditionModel, probe: Probe, batch_size: int = 64) -> dict[str, float]:
    """Mean squared error of the velocity by split, on fixed noise and evenly spread times."""
    count = len(probe.latents)
    noise = torch.randn(probe.latents.shape, generator=torch.Generator().manual_seed(1))
    times = (torch.arange(count) * 0.6180339887) % 1.0  # evenly spread within any run of images
    errors = []
    for part in torch.split(torch.arange(count), batch_size):
        states = mix(probe.latents[part], noise[part], times[part]).to(unet.device)
        out = unet(states, (times[part] * TIMESTEPS).to(unet.device), probe.text[part].to(unet.device)).sample
        errors.append((out.float().cpu() - (noise[part] - probe.latents[part])).square().mean(dim=(1, 2, 3)))
    error = torch.cat(errors)
    places = {
        split: [i for i, s in enumerate(probe.splits) if s == split] for split in dict.fromkeys(probe.splits)
    }
    return {f"probe_{split}": round(float(error[where].mean()), 5) for split, where in places.items()}
