"""The stages: what each trains, on what, with which loss. Sizes and defaults of the shipped model are here.

Order: `judge` and `encoder` need nothing; `autoencoder` takes its perceptual term from the encoder's image
tower; `unet` needs both. What only evaluation needs stands in `score.py`. Held-out captions are never drawn by
any stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sagediff.builtin.image_towers import ImageEncoder
from sagediff.builtin.scenes.networks import IMAGE_TOWER_WIDTHS, Judge, load_image_encoder
from sagediff.builtin.scenes.tokenizer import MAX_LENGTH, build_tokenizer
from sagediff.builtin.scenes.training.scene_images import SceneImages
from sagediff.builtin.scenes.world import ATTRIBUTES
from sagediff.builtin.training.architectures import new_autoencoder, new_unet
from sagediff.builtin.training.contrast import contrastive_terms
from sagediff.builtin.training.stage_command import StageConfig, require
from sagediff.builtin.training.stage_loop import train, write_tensors

TEXT_DIM = 128
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
PREDICTION = "v_prediction"


@dataclass(frozen=True)
class SceneStageConfig(StageConfig):
    """Options of the command line; None takes the stage's own default."""

    text_encoder: Path | None = None  # `score`: a folder with tokenizer/ and text_encoder/; None takes `out`


def train_judge(config: SceneStageConfig) -> Path:
    """The judge: cross-entropy on the four attributes of renders under slight noise."""
    batch_size = config.batch_size or 256
    torch.manual_seed(1234)
    judge, scene_images = Judge(), SceneImages(config.device)

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        scenes, images = scene_images.sample(batch_size, rng)
        # slight noise of random strength, so that the judge reads shapes and not single pixels
        strength = torch.rand(batch_size, 1, 1, 1, generator=noise, device=images.device) * 0.15
        images = images + strength * torch.randn(images.shape, generator=noise, device=images.device)
        logits = judge(images)
        labels = torch.tensor([scene.labels for scene in scenes], device=images.device)
        return {name: F.cross_entropy(logits[name], labels[:, i]) for i, name in enumerate(ATTRIBUTES)}

    trained = train(config.loop("judge", steps=1500, learning_rate=2e-3, seed=77, ema=0.99), judge, losses)
    path = config.out / "judge.safetensors"
    write_tensors(path, {k: v.half() for k, v in trained.state_dict().items()})
    return path


def text_encoder_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_DIM, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=MAX_LENGTH, projection_dim=TEXT_DIM,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


class _Contrast(nn.Module):
    def __init__(self, text: CLIPTextModel, image: ImageEncoder) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.log_scale = nn.Parameter(torch.tensor(2.0))


def train_encoder(config: SceneStageConfig) -> Path:
    """Text and image tower by contrast (CLIP, arXiv 2103.00020), with neighbours as hard negatives.

    A quarter of each batch is drawn freely; the rest changes one word of it. The contrast is between the
    text model's pooled state itself and the image tower, so that any CLIPTextModel user gets the embedding
    from `pooler_output`, without a projection.
    """
    batch_size = config.batch_size or 256
    torch.manual_seed(config.seed or 0)
    tokenizer = build_tokenizer(config.out / "tokenizer")
    model = _Contrast(
        CLIPTextModel(text_encoder_config(tokenizer)), ImageEncoder(TEXT_DIM, IMAGE_TOWER_WIDTHS)
    )
    scene_images = SceneImages(config.device)

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        scenes, images = scene_images.sample_with_neighbours(batch_size, rng)
        captions = [scene.caption for scene in scenes]
        tokens = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        text = model.text(tokens.input_ids.to(config.device)).pooler_output
        return contrastive_terms(text, model.image(images), model.log_scale, captions)

    trained = train(config.loop("encoder", steps=2500, learning_rate=1e-3, seed=0, ema=0.99), model, losses)
    trained.text.save_pretrained(config.out / "text_encoder")
    path = config.out / "image_encoder.safetensors"
    write_tensors(path, {k: v.half() for k, v in trained.image.state_dict().items()})
    return path


def train_autoencoder(config: SceneStageConfig) -> Path:
    """KL autoencoder: absolute error, a perceptual term from the image tower's maps, a small KL term."""
    batch_size = config.batch_size or 24
    torch.manual_seed(config.seed or 0)
    model, scene_images = new_autoencoder(), SceneImages(config.device)
    tower = load_image_encoder(config.out, TEXT_DIM).tower.to(
        config.device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    tower.requires_grad_(False)

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        _, images = scene_images.sample(batch_size, rng)
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.sample(noise)).sample
        kl = (
            posterior.mean.float() ** 2 + posterior.logvar.float().exp() - 1 - posterior.logvar.float()
        ).mean() / 2
        perceptual = decoded.new_zeros(())
        for real, made in zip(tower(images)[:3], tower(decoded)[:3], strict=True):
            perceptual = (
                perceptual
                + F.mse_loss(F.normalize(made.float(), dim=1), F.normalize(real.float(), dim=1))
                * made.shape[1]
                / 2
            )
        error = (decoded - images).float()
        return {
            "pixel": error.abs().mean() + error.square().mean(),
            "perceptual": perceptual / 3,
            "kl": 3e-4 * kl,
        }

    trained = train(
        config.loop("autoencoder", steps=3500, learning_rate=1.5e-3, seed=0, ema=0.995), model, losses
    )
    with torch.no_grad():
        _, images = scene_images.sample(512, np.random.default_rng(99))
        latents = trained.encode(images).latent_dist.mean
    trained.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    trained.save_pretrained(config.out / "vae")
    return config.out / "vae"


def train_unet(config: SceneStageConfig, renders_per_caption: int = 12) -> Path:
    """The denoiser: v-prediction on latents encoded beforehand, a tenth of the captions dropped for guidance."""
    remedy = "train the stages before `unet` into the same --out"
    require(config.out, ("tokenizer", "text_encoder", "vae"), remedy)
    batch_size = config.batch_size or 64
    torch.manual_seed(config.seed or 0)
    unet, scene_images = new_unet(TEXT_DIM), SceneImages(config.device)
    captions = len(scene_images.scenes)
    texts = [scene.caption for scene in scene_images.scenes] + [""]
    hidden = encode_texts(config.out, texts, config.device, "last_hidden_state")
    latents = _encode_images(config, scene_images, renders_per_caption)  # (renders, captions, C, 16, 16)
    noiser = DDPMScheduler(**SCHEDULE, prediction_type=PREDICTION)

    def losses(step: int, rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        which = torch.from_numpy(rng.integers(captions, size=batch_size))
        clean = latents[torch.from_numpy(rng.integers(renders_per_caption, size=batch_size)), which]
        clean = clean.float().contiguous(memory_format=torch.channels_last)
        dropped = torch.from_numpy(rng.random(batch_size) < 0.1)
        condition = hidden[torch.where(dropped, captions, which)]  # the last row is the empty caption
        # stratified timesteps: less variance from step to step
        t = ((np.arange(batch_size) + rng.random(batch_size)) / batch_size * 1000).astype(np.int64)
        timesteps = torch.from_numpy(t).to(config.device)
        epsilon = torch.randn(clean.shape, generator=noise, device=config.device)
        noisy = noiser.add_noise(clean, epsilon, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps, condition).sample
        return {"v": F.mse_loss(predicted.float(), noiser.get_velocity(clean, epsilon, timesteps))}

    trained = train(config.loop("unet", steps=10000, learning_rate=1e-3, seed=0, ema=0.999), unet, losses)
    trained.save_pretrained(config.out / "unet")
    return config.out / "unet"


@torch.no_grad()
def encode_texts(folder: Path, texts: list[str], device: str, output: str) -> Tensor:
    """That output of the text tower in `folder`, a row per text, float32."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=MAX_LENGTH)
    model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device).eval()
    ids = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids
    return torch.cat([model(part.to(device))[output] for part in ids.split(512)])


@torch.no_grad()
def _encode_images(config: SceneStageConfig, scene_images: SceneImages, renders: int) -> Tensor:
    vae = AutoencoderKL.from_pretrained(config.out / "vae").to(config.device).eval()
    rng = np.random.default_rng([config.seed or 0, 5])
    rows = []
    for _ in range(renders):
        for start in range(0, len(scene_images.scenes), 256):
            images = scene_images.draw(scene_images.scenes[start : start + 256], rng)
            with torch.autocast(config.device, torch.bfloat16, enabled=config.uses_bf16):
                rows.append(vae.encode(images).latent_dist.mean.mul(vae.config.scaling_factor).half())
    encoded = torch.cat(rows)
    return encoded.reshape(renders, len(scene_images.scenes), *encoded.shape[1:])
