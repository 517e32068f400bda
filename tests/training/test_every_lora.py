"""A LoRA of each of this year's families: trained, saved, and loaded by the pipeline's own `load_lora_weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import embeddings
from tiny.worded import WORDED, number_of, worded

import sagediff.training.loop as loop
from sagediff.pipelines.lora import sharing_record
from sagediff.prompts.embeddings import Embeddings
from sagediff.training.adapter import add_adapter, target_modules
from sagediff.training.captioned_images import load_images
from sagediff.training.latents import LatentLayout, _decoded
from sagediff.training.train_config import TrainConfig
from sagediff.training.trainable import TrainableDenoiser

CAPTIONS = ["a red cat", "a red dog", "a blue bird", "a blue house"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "text": text}) for n, text in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def predicted(pipe: Any, side: int) -> torch.Tensor:
    """What the denoiser predicts, by the trained code, for two captions."""
    denoiser = TrainableDenoiser(pipe, side, side)
    states = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditions = denoiser.conditions(CAPTIONS[:2])
        return denoiser(states, torch.tensor([700.0, 300.0]), conditions)


@pytest.mark.parametrize("name", WORDED)
def test_twenty_steps_train_a_lora_that_the_pipeline_loads(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop,
        "embed_prompts",
        lambda texts, pipe: Embeddings(
            embeddings([number_of(text) // 25 for text in texts]).numpy(), "numbers"
        ),
    )
    monkeypatch.setattr(loop, "draw_validation", lambda *arguments: None)
    pipe, side = worded(name)
    before = predicted(pipe, side)
    config = TrainConfig(
        tmp_path / "out", steps=20, rank=2, train_batch_size=4, threshold=-1.0, pool_size=4, group_size=(2, 2),
        learning_rate=1e-2, lr_warmup_steps=0, resolution=side, report_to="none", ema_decay=0.0,
    )  # fmt: skip
    file = loop.train(pipe, load_images(str(data)), config)
    assert sharing_record(file) is not None
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 20 and any(line["handover"] > 0 for line in log)
    assert all(np.isfinite(line["handover"] + line["branch"]) for line in log)
    for parameter_name, parameter in pipe.transformer.named_parameters():
        if "lora" in parameter_name:
            parameter.data = parameter.data.half().float()  # as it is written
    fresh, _ = worded(name)
    torch.testing.assert_close(predicted(fresh, side), before, rtol=0, atol=0)
    fresh.load_lora_weights(tmp_path / "out")
    trained = predicted(fresh, side)
    torch.testing.assert_close(trained, predicted(pipe, side), rtol=0, atol=1e-5)
    assert not torch.allclose(trained, before, atol=1e-3)


@pytest.mark.parametrize("name", WORDED)
def test_images_are_encoded_to_what_the_pipeline_decodes(name: str) -> None:
    pipe, side = worded(name)
    denoiser = TrainableDenoiser(pipe, side, side)
    layout = LatentLayout.of(denoiser)
    images = torch.rand(3, 3, side, side) * 2 - 1
    with torch.no_grad():
        latents = layout.encode(pipe.vae, images)
        encoded = pipe.vae.encode(images.unsqueeze(2) if len(layout.raw_shape) == 4 else images)
        raw = encoded.latent if name == "sana" else encoded.latent_dist.mode()
    torch.testing.assert_close(_decoded(denoiser, latents), raw, rtol=1e-4, atol=1e-4)
    if name == "z-image":
        torch.testing.assert_close(
            latents[:, :, 0].double(), (raw.double() - 0.2) * 0.4, rtol=1e-4, atol=1e-4
        )
    if name == "sana":
        torch.testing.assert_close(latents.double(), raw.double() * 0.4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WORDED)
def test_the_layers_of_an_adapter_are_those_of_attention(name: str) -> None:
    module = worded(name)[0].transformer
    attention, everything = (target_modules(module, layers) for layers in ("attention", "all"))
    assert attention and set(attention) < set(everything)
    assert any(layer.endswith(("to_q", "to_qkv_mlp_proj")) for layer in attention)
    add_adapter(module, 2, "all")
