"""What looks at images: tiny CLIP and DINOv2 models from disk, the built-in judge, a folder of real images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from sagediff.builtin.scenes import weights_dir
from sagediff.builtin.scenes.render import FONT_FILES, Renderer
from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions, reference_features
from sagediff.builtin.scenes.world import held_out_scenes, parse_caption
from sagediff.errors import InputError
from sagediff.evaluation.feature_networks import InceptionFeatures, open_features
from sagediff.evaluation.perception import Judging, NetworkPerception
from sagediff.evaluation.reference import file_features
from sagediff.files.imagefolder import list_images, read_imagefolder

_PROMPTS = ["a small cat", "a large dog at the top", "a heart"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = AutoTokenizer.from_pretrained(weights_dir() / "tokenizer")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 24,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return folder


def _images(count: int = 3, side: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def test_clip_score_equals_the_whole_models_own_logits(clip: Path) -> None:
    images = _images().mul(255).round() / 255
    perception = NetworkPerception(features=str(clip), clip=str(clip))
    model = CLIPModel.from_pretrained(clip, use_safetensors=True).eval()
    pil = [Image.fromarray(i.permute(1, 2, 0).mul(255).byte().numpy()) for i in images]
    pixels = AutoImageProcessor.from_pretrained(clip)(images=pil, return_tensors="pt").pixel_values
    tokens = AutoTokenizer.from_pretrained(clip)(_PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
    assert torch.allclose(perception.alignment(images, _PROMPTS).float(), logits.diagonal(), atol=1e-5)


def test_features_come_from_dinov2_and_not_from_clip(clip: Path, dinov2: Path) -> None:
    perception = NetworkPerception(features=str(dinov2), clip=str(clip))
    assert perception.features(_images()).shape == (3, 24)
    assert str(dinov2) in perception.name and not isinstance(perception, Judging)


def test_batches_change_nothing(clip: Path, dinov2: Path) -> None:
    images, prompts = (
        _images(7),
        [f"a {word} heart" for word in ["small", "large", "red", "blue", "black", "white", "pink"]],
    )
    one, all_ = (NetworkPerception(features=str(dinov2), clip=str(clip), batch_size=size) for size in (1, 32))
    assert torch.allclose(one.features(images), all_.features(images), atol=1e-5)
    assert torch.allclose(one.alignment(images, prompts), all_.alignment(images, prompts), atol=1e-5)


def test_models_that_are_not_there_or_not_clip_are_refused(clip: Path, dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load the model"):
        NetworkPerception(features=str(tmp_path), clip=str(clip))
    with pytest.raises(InputError, match="needs a CLIP model"):
        NetworkPerception(features=str(clip), clip=str(dinov2))


def test_inception_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagediff.evaluation.feature_networks.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sagediff\[eval\]' torch-fidelity torchvision"):
        InceptionFeatures()


# -- the built-in world


def test_the_world_is_seen_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    look = WorldPerception()
    images, prompts = _images(5, 64), held_out_captions(5)
    whole = look.features(images), look.alignment(images, prompts), look.accuracy(images, prompts)
    monkeypatch.setattr("sagediff.builtin.scenes.scene_perception._BATCH", 2)
    assert torch.allclose(whole[0], look.features(images), atol=1e-4)
    assert torch.allclose(whole[1], look.alignment(images, prompts), atol=1e-5)
    assert all(torch.equal(flags, look.accuracy(images, prompts)[name]) for name, flags in whole[2].items())
    assert isinstance(look, Judging)


def test_prompts_of_another_world_are_not_judged() -> None:
    look = WorldPerception()
    assert look.accuracy(_images(1, 64), ["a photograph"]) == {}
    assert look.alignment(_images(1, 64), ["a photograph"]).shape == (1,)
    with pytest.raises(InputError, match="looks at"):
        look.features(_images(1, 32))


def test_reference_and_captions_are_those_held_out() -> None:
    everything = reference_features()
    assert everything.shape == (len(held_out_scenes()), 128)
    captions = held_out_captions(4)
    rows = [[scene.caption for scene in held_out_scenes()].index(caption) for caption in captions]
    assert torch.equal(reference_features(captions), everything[rows])
    with pytest.raises(InputError, match="no render"):
        reference_features(["a photograph"])
    with pytest.raises(InputError, match="captions must lie"):
        held_out_captions(0)


@pytest.mark.skipif(not any(f.is_file() for f in FONT_FILES), reason="font Noto Color Emoji not installed")
def test_the_score_tower_tells_right_captions_from_wrong_ones_and_the_judge_reads_renders() -> None:
    look, captions = WorldPerception(), held_out_captions(48)
    renders = Renderer().batch([parse_caption(c) for c in captions], np.random.default_rng(1))
    images = torch.from_numpy(renders)
    right, wrong = look.alignment(images, captions), look.alignment(images, captions[1:] + captions[:1])
    assert right.mean() > 0.9 and (right > wrong).all()
    assert look.accuracy(images, captions)["all"].float().mean() > 0.95
    # one render of a caption is near another render of it
    apart = (look.features(images) - reference_features(captions)).norm(dim=1)
    assert apart.median() < 0.5 * reference_features(captions).norm(dim=1).median()


# -- folders


def test_a_folder_of_real_images(dinov2: Path, clip: Path, tmp_path: Path) -> None:
    perception = NetworkPerception(features=str(dinov2), clip=str(clip))
    (tmp_path / "deep").mkdir()
    for number, side in enumerate((40, 50, 64)):
        Image.new("RGB", (side, side), (number * 80, 20, 90)).save(tmp_path / "deep" / f"{number}.png")
    features = file_features(list_images(tmp_path), perception, (40, 40))
    assert features.shape == (3, 24)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png"):
        file_features(list_images(tmp_path), perception, (40, 40))
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "absent")


@pytest.mark.parametrize(
    "lines, words",
    [
        (None, "holds no metadata.jsonl"),
        ("{", "line 1: not JSON"),
        ('{"file_name": "b.png", "text": "x"}', "no such image"),
        ('{"file_name": "a.png", "text": " "}', "no caption"),
        ("\n", "names no images"),
    ],
)
def test_a_broken_imagefolder_is_named(lines: str | None, words: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    if lines is not None:
        (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_imagefolder(tmp_path)


def test_efficientnet_lite_sees_what_is_drawn_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_features("efficientnet-lite0")
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, 16:48, 16:48] = 1
    large = torch.nn.functional.interpolate(image, scale_factor=2)
    other = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(large, (20, 20))
    features = torch.cat([network(each) for each in (image, large, other, wide)])
    assert features.shape == (4, 1280) and features.dtype == torch.float32
    near, far = (features[0] - features[1]).norm(), (features[0] - features[2]).norm()
    assert near < 0.3 * far
    torch.testing.assert_close(features[3], features[1], rtol=1e-3, atol=1e-3)  # cut square at the centre
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"sagediff\[emoji-eval\]"):
        open_features("efficientnet-lite0")
