"""Single files of weights: what diffusers makes of them, and what does not fit is refused before weights are read."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from tiny import tiny
from tiny.single_files import single_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sagediff.builtin.scenes import weights_dir
from sagediff.cli.main import main
from sagediff.errors import InputError
from sagediff.pipelines.content import model_digest
from sagediff.pipelines.loading import load_for_planning, load_pipeline, supported_parts
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.run_settings import ModelOptions, resolve
from sagediff.pipelines.single_file import check_fit, held_parts

FOLDER = weights_dir()
ENCODER = "cond_stage_model.transformer.text_model"


@pytest.fixture(scope="module")
def sd(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, which is a Stable Diffusion one, as a single file."""
    file = tmp_path_factory.mktemp("sd") / "mine.safetensors"
    save_file(single_file(demo), file)
    return file


def weights(pipe: Any) -> dict[str, Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()
    }


def assert_equal(pipe: Any, expected: Any) -> None:
    found, wanted = weights(pipe), weights(expected)
    assert found.keys() == wanted.keys() and type(pipe) is type(expected)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    own = [{k: v for k, v in each.scheduler.config.items() if k[0] != "_"} for each in (pipe, expected)]
    assert own[0] == own[1]
    assert not any(part.training for part in pipe.components.values() if isinstance(part, torch.nn.Module))


def test_stable_diffusion_is_what_its_folder_is(sd: Path, demo: Any) -> None:
    assert_equal(load_pipeline(sd, config=FOLDER), demo)
    assert supported_parts(ModelSource(str(sd), config=str(FOLDER))) == supported_parts("demo")
    light, denoiser = load_for_planning(ModelSource(str(sd), config=str(FOLDER)))
    assert light.unet is None and denoiser == "UNet2DConditionModel"
    assert torch.equal(
        light.text_encoder.embeddings.token_embedding.weight,
        demo.text_encoder.embeddings.token_embedding.weight,
    )


def test_the_configuration_is_found_beside_the_file(sd: Path, tmp_path: Path, demo: Any) -> None:
    shutil.copytree(FOLDER, tmp_path / "mine")
    file = Path(shutil.copy(sd, tmp_path / "mine.safetensors"))
    assert_equal(load_pipeline(file), demo)
    inside = shutil.copy(sd, tmp_path / "mine" / "whole.safetensors")
    assert supported_parts(inside)[1] == "UNet2DConditionModel"


def test_a_part_of_its_own_dtype_is_not_rounded_first(sd: Path, demo: Any) -> None:
    pipe = load_pipeline(sd, config=FOLDER, dtype={"default": torch.float16, "vae": torch.float32})
    assert (pipe.unet.dtype, pipe.text_encoder.dtype) == (torch.float16, torch.float16)
    assert all(torch.equal(t, demo.vae.state_dict()[n]) for n, t in pipe.vae.state_dict().items())


def encoder(cls: Any, size: int, vocabulary: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=size, intermediate_size=8, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, eos_token_id=1,
    )  # fmt: skip
    return cls(config).eval()


def test_sdxl_with_both_encoders(tmp_path: Path, demo: Any) -> None:
    pipe = tiny("sdxl").pipe
    size = len(demo.tokenizer)
    pipe.register_modules(
        tokenizer=demo.tokenizer, tokenizer_2=demo.tokenizer, text_encoder=encoder(CLIPTextModel, 4, size),
        text_encoder_2=encoder(CLIPTextModelWithProjection, 12, size),
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "xl")
    save_file(single_file(pipe), tmp_path / "xl.safetensors")
    assert held_parts(tmp_path / "xl.safetensors", tmp_path / "xl") == {
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
    }
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        next((tmp_path / "xl" / part).glob("*.safetensors")).unlink()
    found = load_pipeline(tmp_path / "xl.safetensors")
    assert_equal(found, pipe)
    prompt = {
        "prompt": ["a cat"],
        "num_inference_steps": 2,
        "output_type": "latent",
        "height": 16,
        "width": 16,
    }
    made, wanted = (
        each(**prompt, generator=torch.Generator().manual_seed(0)).images for each in (found, pipe)
    )
    assert torch.equal(made, wanted)


def test_flux_holds_the_transformer_alone(tmp_path: Path) -> None:
    pipe = tiny("flux").pipe
    pipe.save_pretrained(tmp_path / "base")
    pipe.transformer.norm_out.linear.bias.data += 1  # a model of somebody else's
    save_file(pipe.transformer.state_dict(), tmp_path / "mine.safetensors")
    assert held_parts(tmp_path / "mine.safetensors", tmp_path / "base") == {"transformer"}
    assert_equal(load_pipeline(tmp_path / "mine.safetensors", config=tmp_path / "base"), pipe)
    if pipe.vae is not None:
        next((tmp_path / "base" / "vae").glob("*.safetensors")).unlink()
        with pytest.raises(InputError, match=r"holds no vae, and .* has no safetensors file of it"):
            load_pipeline(tmp_path / "mine.safetensors", config=tmp_path / "base")


def test_a_part_that_the_folder_has_in_one_variant_alone_is_taken(tmp_path: Path, demo: Any) -> None:
    shutil.copytree(FOLDER, tmp_path / "base")
    own = next((tmp_path / "base" / "text_encoder").glob("*.safetensors"))
    own.rename(own.with_suffix(".fp16.safetensors"))
    tensors = {n: t for n, t in single_file(demo).items() if not n.startswith("cond_stage_model")}
    save_file(tensors, tmp_path / "mine.safetensors")
    source = ModelSource(str(tmp_path / "mine.safetensors"), config=str(tmp_path / "base"))
    assert_equal(load_pipeline(source.name, config=source.config), demo)
    before = model_digest(source)
    own.with_suffix(".fp16.safetensors").write_bytes(b"others")
    assert model_digest(source) != before
    with pytest.raises(InputError, match="only parts of StableDiffusionPipeline can be given, got nonsense"):
        load_pipeline(source.name, config=source.config, nonsense=1)


def of_size(file: Path, sizes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file with tensors of these sizes; takes no room on the disk."""
    header, end = {}, 0
    for name, size in sizes.items():
        start, end = end, end + torch.Size(size).numel()
        header[name] = {"dtype": "F8_E4M3", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)
    return file


def flux_sizes(guidance: bool) -> dict[str, tuple[int, ...]]:
    """FLUX of one block of each kind, by the names that its makers gave."""
    made: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outs: int, ins: int) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = (outs, ins), (outs,)

    wide = 3072
    for name, ins in {"time_in": 256, "vector_in": 768, **({"guidance_in": 256} if guidance else {})}.items():
        linear(f"{name}.in_layer", wide, ins)
        linear(f"{name}.out_layer", wide, wide)
    linear("img_in", wide, 64)
    linear("txt_in", wide, 4096)
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        linear(f"{block}_mod.lin", 6 * wide, wide)
        linear(f"{block}_attn.qkv", 3 * wide, wide)
        linear(f"{block}_attn.proj", wide, wide)
        linear(f"{block}_mlp.0", 4 * wide, wide)
        linear(f"{block}_mlp.2", wide, 4 * wide)
        made |= {f"{block}_attn.norm.{each}_norm.scale": (128,) for each in ("query", "key")}
    linear("single_blocks.0.modulation.lin", 3 * wide, wide)
    linear("single_blocks.0.linear1", 7 * wide, wide)
    linear("single_blocks.0.linear2", wide, 5 * wide)
    made |= {f"single_blocks.0.norm.{each}_norm.scale": (128,) for each in ("query", "key")}
    linear("final_layer.linear", 64, wide)
    linear("final_layer.adaLN_modulation.1", 2 * wide, wide)
    return {f"model.diffusion_model.{name}": size for name, size in made.items()}


def test_flux_by_its_makers_names_is_compared_without_its_weights(tmp_path: Path) -> None:
    config = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_fit(
        FluxTransformer2DModel,
        of_size(tmp_path / "dev.safetensors", flux_sizes(True)),
        tmp_path,
        "transformer",
    )
    schnell = of_size(tmp_path / "schnell.safetensors", flux_sizes(False))
    with pytest.raises(InputError, match=r"does not fit .*lacks `time_text_embed\.guidance_embedder"):
        check_fit(FluxTransformer2DModel, schnell, tmp_path, "transformer")
    (tmp_path / "config.json").write_text(json.dumps(config | {"guidance_embeds": False}))
    with pytest.raises(
        InputError, match="has no use for: `time_text_embed"
    ):  # would run without its guidance
        check_fit(FluxTransformer2DModel, tmp_path / "dev.safetensors", tmp_path, "transformer")


@pytest.mark.parametrize(
    "changed, words",
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "the unet in .* lacks `conv_out.bias`"),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(5)}), "`conv_out.bias` is of size 5, not"),
        (lambda t: t.pop("first_stage_model.quant_conv.bias"), "the vae in .* lacks `quant_conv.bias`"),
        (lambda t: t.pop(f"{ENCODER}.final_layer_norm.bias"), "lacks `final_layer_norm.bias` of the text_enc"),
        (lambda t: t.update({"a.to_q.lora_A.weight": torch.zeros(2)}), "holds a LoRA, not a model"),
        (lambda t: t.update({"model.diffusion_model.out.2.scale_weight": torch.zeros(1)}), "scales of their own"),
        (lambda t: t.clear(), "holds no weights"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("model.")], "does not fit"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    changed: Callable[[Any], Any], words: str, tmp_path: Path, demo: Any
) -> None:
    tensors = single_file(demo)
    changed(tensors)
    save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=words) as raised:
        load_pipeline(tmp_path / "mine.safetensors", config=FOLDER)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("mine.ckpt", b"x", "pickles"), ("mine.pt", b"x", "pickles"), ("mine.BIN", b"x", "pickles"),
        ("none.ckpt", None, "pickles"), ("mine.txt", b"x", r"ends in \.safetensors"),
        ("mine.safetensors", b"x" * 50, "not a safetensors"), ("mine.safetensors", b"", "not a safetensors"),
        ("none.safetensors", None, "there is no such file on"),
        ("mine.gguf", b"no", "not a GGUF file|needs the package gguf"),
    ],
)  # fmt: skip
def test_files_that_are_none(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        load_pipeline(tmp_path / name, config=FOLDER)
    assert "\n" not in str(raised.value)


def test_options_that_a_file_does_not_take(sd: Path, tmp_path: Path) -> None:
    for source, words in (
        (ModelSource(str(sd), variant="fp16"), "--variant fp16 is for folders"),
        (ModelSource(str(sd), revision="main"), "--revision main is for hub ids"),
        (ModelSource("demo", revision="main"), "--revision main is for hub ids"),
        (ModelSource("demo", config=str(FOLDER)), "is for a single file of weights"),
        (ModelSource(str(sd), config=str(tmp_path)), "--config: .* holds no model_index"),
        (ModelSource(str(sd), config="org/none"), "--config: cannot load the configuration of 'org/none'"),
    ):
        with pytest.raises(InputError, match=words):
            supported_parts(source)


def test_the_names_in_the_file_tell_which_configuration_is_needed(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Any
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"looks like .*give --config FOLDER") as raised:
        load_pipeline(sd)
    name = str(raised.value).split("looks like ")[1].split(",")[0]
    cache = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(FOLDER, cache / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    assert_equal(load_pipeline(sd), demo)
    save_file({"strange.weight": torch.zeros(1)}, tmp_path / "strange.safetensors")
    with pytest.raises(InputError, match="no model is known by the names"):
        load_pipeline(tmp_path / "strange.safetensors")


def test_defaults_lie_beside_the_file(sd: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(sd, tmp_path / "mine.safetensors"))
    found = lambda: resolve(ModelOptions(str(file), config=str(FOLDER))).sharing.share_ratio  # noqa: E731
    (tmp_path / "sagediff.json").write_text('{"share_ratio": 0.15}')
    assert found() == 0.15
    (tmp_path / "other.safetensors").touch()  # the defaults may be the other one's
    assert found() != 0.15
    (tmp_path / "mine.sagediff.json").write_text('{"share_ratio": 0.25}')
    assert found() == 0.25


def test_the_command_makes_the_same_images_and_knows_the_file_again(
    sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(shutil.copy(sd, tmp_path / "mine.safetensors"))
    folder = shutil.copytree(FOLDER, tmp_path / "folder")
    (folder / "sagediff.json").unlink(missing_ok=True)
    common = ["a small cat at the left on a red background", "--steps", "2", "--share-ratio", "0.5"]
    one = ["generate", *common, "--out", str(tmp_path / "one"), "--model", file, "--config", str(folder)]
    assert main(one) == 0
    note = [line for line in capsys.readouterr().err.splitlines() if "cautious" in line]
    assert len(note) == 1 and "threshold 0.9" in note[0] and "share ratio" not in note[0]  # which was named
    assert main(["generate", *common, "--out", str(tmp_path / "two"), "--model", str(folder)]) == 0
    made, wanted = (next((tmp_path / out / "images").iterdir()) for out in ("one", "two"))
    assert made.read_bytes() == wanted.read_bytes()
    source = ModelSource(file, config=str(folder))
    before = model_digest(source)
    with Path(file).open("r+b") as opened:
        opened.seek(-4, 2)
        opened.write(b"\0\0\0\1")
    assert model_digest(source) != before
    capsys.readouterr()
    assert main([*one, "--resume"]) == 2
    assert "model" in capsys.readouterr().err
