"""The training loop goes on exactly where it stopped; the autoencoder's affine step; the pipeline's parts fit."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from sagediff.builtin.emoji.assemble import new_pipeline
from sagediff.builtin.emoji.autoencoder import (
    AutoencoderLosses,
    encode,
    freeze_encoder,
    new_autoencoder,
    normalise_latents,
)
from sagediff.builtin.emoji.batches import image_weights
from sagediff.builtin.emoji.denoisers import new_pixart, predict, use_plain_attention
from sagediff.builtin.emoji.flow import draw_times, guided, mix, sample
from sagediff.builtin.emoji.images import Row
from sagediff.builtin.emoji.loop import LoopConfig, train
from sagediff.builtin.emoji.text import MAX_TOKENS, encode_captions


def tiny_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))


def tiny_losses(
    model: nn.Module, step: int, rng: np.random.Generator, noise: torch.Generator
) -> Mapping[str, Tensor]:
    images = torch.from_numpy(rng.standard_normal((3, 2, 5, 5))).float()
    return {"error": (model(images) - torch.randn(images.shape, generator=noise)).square().mean()}


def config(out: Path, steps: int = 8) -> LoopConfig:
    return LoopConfig(out, steps, 3, 1e-2, warmup=2, ema=0.9, log_every=2, report_every=4)


def test_a_stopped_run_goes_on_exactly(tmp_path: Path) -> None:
    whole = train(config(tmp_path / "whole"), tiny_model(), tiny_losses)

    def stops(
        model: nn.Module, step: int, rng: np.random.Generator, noise: torch.Generator
    ) -> Mapping[str, Tensor]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return tiny_losses(model, step, rng, noise)

    assert train(config(tmp_path / "parts"), tiny_model(), stops) is None
    parts = train(config(tmp_path / "parts"), tiny_model(), tiny_losses)
    assert whole is not None and parts is not None
    for mine, theirs in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


def test_the_rate_warms_up_and_cools_down() -> None:
    rates = [LoopConfig(Path(), 10, 1, 1.0, warmup=2, cooldown=4).rate(step) for step in range(10)]
    assert rates[:6] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates[6:] == sorted(rates[6:], reverse=True) and 0 < rates[9] < 0.2


def test_normalised_latents_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    before = encode(model, pixels)
    with torch.no_grad():
        images = model.decode(before).sample
        normalise_latents(model, before.mean(dim=(0, 2, 3)), before.std(dim=(0, 2, 3)))
        after = encode(model, pixels)
        assert torch.allclose(after.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4)
        assert torch.allclose(after.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-4)
        assert torch.allclose(model.decode(after).sample, images, atol=1e-4)


def test_a_frozen_encoder_keeps_its_latents_while_the_decoder_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_autoencoder()
    freeze_encoder(model)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    before, weights = encode(model, pixels), model.decoder.conv_out.weight.clone()
    trained = train(LoopConfig(tmp_path, 2, 2, 1e-2, ema=0.0), model, AutoencoderLosses(pixels, 2, 1e-4))
    assert isinstance(trained, AutoencoderKL)
    assert torch.equal(encode(trained, pixels), before)
    assert not torch.equal(trained.decoder.conv_out.weight, weights)


def test_times_are_spread_and_states_are_mixtures() -> None:
    times = draw_times(512, np.random.default_rng(0))
    assert times.dtype == torch.float32 and times.min() > 0 and times.max() < 1
    assert 0.45 < times.mean() < 0.55
    image, noise = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert mix(image, noise, torch.tensor([0.25, 1.0])).flatten().tolist() == [0.25, 1.0]


def test_the_sampler_follows_a_known_velocity() -> None:
    """With one image in the world, the velocity is (x - image) / t, and every noise leads to it."""
    image = torch.randn(1, 2, 4, 4)
    noise = torch.randn(3, 2, 4, 4)
    made = sample(lambda x, t: (x - image) / t.view(-1, 1, 1, 1), noise, steps=20)
    assert torch.allclose(made, image.expand_as(made), atol=1e-2)


def test_guidance_leads_away_from_the_empty_caption() -> None:
    def velocity(states: Tensor, times: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return text[:, :1, :1, None].expand_as(states)

    text, mask = torch.full((2, 3, 4), 2.0), torch.ones(2, 3, dtype=torch.bool)
    call = guided(velocity, text, mask, torch.ones(1, 3, 4), mask[:1], scale=3.0)
    assert torch.equal(call(torch.zeros(2, 1, 1, 1), torch.ones(2)), torch.full((2, 1, 1, 1), 4.0))


def test_a_drawing_in_many_skin_tones_weighs_the_root_of_their_number() -> None:
    rows = [
        Row("", "", base, base, (), vendor, "", (), "white", "train")
        for base, vendor in [("hand", "noto")] * 4 + [("robot", "noto")]
    ]
    weights = image_weights(rows)
    assert weights[:4].sum() == pytest.approx(2 * weights[4])
    assert weights.sum() == pytest.approx(1)


def test_the_transformer_ignores_what_the_mask_hides() -> None:
    torch.manual_seed(0)
    model = new_pixart(width=32, layers=1).eval()
    use_plain_attention(model)
    states, times = torch.randn(2, 8, 16, 16), torch.tensor([0.3, 0.7])
    text, mask = torch.randn(2, 6, 384), torch.tensor([[1, 1, 1, 0, 0, 0]] * 2).bool()
    with torch.no_grad():
        one = predict(model, states, times, text, mask)
        other = predict(model, states, times, torch.where(mask[..., None], text, 5.0), mask)
    assert one.shape == states.shape
    assert torch.allclose(one, other, atol=1e-4)


@pytest.fixture
def pipeline(tmp_path: Path) -> StableDiffusionPipeline:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "robot", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=MAX_TOKENS)
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=MAX_TOKENS,
    )  # fmt: skip
    encoder = BertModel(sizes, add_pooling_layer=False).eval()
    encoder.config.use_attention_mask = True
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(32, 32),
        cross_attention_dim=16, attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return new_pipeline(unet, new_autoencoder(), tokenizer, encoder)


def test_the_pipeline_saves_loads_and_draws(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "pipe", safe_serialization=True)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipe", local_files_only=True)
    assert type(loaded) is StableDiffusionPipeline and type(loaded.text_encoder) is BertModel
    assert isinstance(loaded.vae, AutoencoderKL)
    drawn = [
        pipe(["a robot", "a cat"], num_inference_steps=2, output_type="np",
             generator=torch.Generator().manual_seed(0)).images
        for pipe in (pipeline, loaded)
    ]  # fmt: skip
    assert drawn[0].shape == (2, 64, 64, 3)
    assert np.array_equal(*drawn)


def test_training_reads_the_states_that_the_pipeline_makes(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "pipe")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipe", local_files_only=True)
    positive, negative = loaded.encode_prompt(["a robot", "a cat"], "cpu", 1, True)
    states, mask = encode_captions(pipeline.tokenizer, pipeline.text_encoder, ["a robot", "a cat", ""])
    assert mask.sum(1).tolist() == [4, 4, 2]
    assert torch.allclose(torch.cat([positive, negative[:1]]), states.float(), atol=2e-3)
