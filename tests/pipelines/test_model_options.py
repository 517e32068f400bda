"""Options of a model beside its weights: what diffusers makes of them, exact under sharing, or refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, PipelineQuantizationConfig, TorchAoConfig
from safetensors.torch import load_file, save_file
from tiny import Tiny, tiny
from tiny.parts import WIDTH
from tiny.single_files import vae_tensors
from torchao.quantization import Int8WeightOnlyConfig

from sagediff import SharedSampler
from sagediff.builtin.scenes import weights_dir
from sagediff.cli.main import main
from sagediff.denoiser.private_names import is_compiled_in_place, unwrapped
from sagediff.errors import InputError
from sagediff.pipelines import quantized
from sagediff.pipelines.content import run_content
from sagediff.pipelines.loading import load_pipeline, load_source
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.placement import open_pipeline, weights_digest
from sagediff.pipelines.quantized import quantization
from sagediff.pipelines.replaced_vae import load_vae
from sagediff.pipelines.run_settings import ModelOptions, resolve
from sagediff.pipelines.running import compile_denoisers, offload
from sagediff.pipelines.step_caches import enable_cache, parse_cache
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 4
SAME = ["a small cat at the left on a red background"] * 2 + [
    "a large car at the top on a blue background"
] * 2


def refused(words: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=words) as raised:
        open_pipeline(ModelOptions(*arguments, device="cpu", **options))
    assert "\n" not in str(raised.value)


def images(pipe: Any) -> np.ndarray[Any, Any]:
    """Two equal prompts, which share."""
    sampler = SharedSampler(pipe, threshold=0.99, share_ratio=0.5, repeats="share", fresh_noise=0.0)
    made = sampler(SAME, num_inference_steps=2, seed=0, guidance_scale=3.0).images
    return np.stack([np.asarray(image, np.int16) for image in made])


def latents(case: Tiny, plan: SharePlan | None, prompts: list[int], steps: int = STEPS) -> torch.Tensor:
    like = plan or SharePlan.from_groups([[0, 2], [1, 3]], num_steps=steps, share_ratio=0.5)
    if plan is None:
        return case(prompts, steps, like.generators(0), False)
    with shared_sampling(case.pipe, plan):
        return case(prompts, steps, plan.generators(0), False)


def assert_exact(case: Tiny, steps: int = STEPS) -> None:
    """Nothing shared, and equal prompts shared, are what the pipeline makes by itself."""
    for ratio, prompts in ((0.0, [3, 4, 5, 6]), (0.5, [7, 8, 7, 8]), (1.0, [7, 8, 7, 8])):
        plan = SharePlan.from_groups([[0, 2], [1, 3]], num_steps=steps, share_ratio=ratio)
        found = latents(case, plan, prompts, steps)
        expected = case(prompts, steps, plan.generators(0), False)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# -- another autoencoder


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    """The built-in model's autoencoder with another last bias, as a folder."""
    folder = Path(shutil.copytree(weights_dir() / "vae", tmp_path / "vae"))
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_another_autoencoder_as_folder_pipeline_or_file(vae: Path, tmp_path: Path, demo: Any) -> None:
    whole = tmp_path / "other"
    whole.mkdir()
    shutil.copytree(vae, whole / "vae")
    own = demo.vae
    made = {vae: load_vae(vae, ModelSource("demo"), torch.float32)}
    save_file({n: t.contiguous() for n, t in vae_tensors(made[vae]).items()}, tmp_path / "vae.safetensors")
    for path in (whole, tmp_path / "vae.safetensors"):
        made[path] = load_vae(path, ModelSource("demo"), torch.float32)
    for found in made.values():
        assert found.config.scaling_factor == own.config.scaling_factor and not found.training
        difference = found.state_dict()["decoder.conv_out.bias"] - own.state_dict()["decoder.conv_out.bias"]
        assert torch.allclose(difference, torch.ones(3), atol=1e-2)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"scaling_factor": 0.5}, r"for other latents: its scaling_factor is 0\.5, the model's"),
        ({"latent_channels": 3}, "its latent_channels is 3"),
        ({"block_out_channels": [8]}, "its number of block_out_channels is 1"),
        ({"_class_name": "AutoencoderTiny"}, "of the class AutoencoderTiny, the model's is AutoencoderKL"),
    ],
)
def test_an_autoencoder_of_other_latents_is_refused(changed: dict[str, Any], words: str, vae: Path) -> None:
    config = vae / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    refused(words, vae=vae)


def test_an_autoencoder_that_is_none_is_refused_before_anything_is_loaded(tmp_path: Path, vae: Path) -> None:
    for path in (tmp_path / "none", tmp_path.parent):
        with pytest.raises(InputError, match=r"--vae .*expected a"):
            ModelOptions(vae=path)
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(InputError, match=r"only \.safetensors"):
        ModelOptions(vae=tmp_path / "a.ckpt")
    save_file({"decoder.conv_out.bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    refused("the vae in .* lacks", vae=tmp_path / "a.safetensors")
    next(vae.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"no \.safetensors file is there"):
        ModelOptions(vae=vae)


def test_what_decides_the_images_is_known_again(vae: Path, tmp_path: Path) -> None:
    settings = resolve(ModelOptions(vae=vae, cache="first-block:0.1", offload="group", compile=True))
    record = settings.record()
    assert (record["vae"], record["cache"]) == (str(vae), "first-block:0.1")
    assert not {"offload", "compile"} & record.keys()
    before = run_content(settings)
    next(vae.glob("*.safetensors")).write_bytes(b"others")
    after = run_content(settings)
    assert before["model"] == after["model"] and before["vae"] != after["vae"]


# -- offloading


@pytest.mark.parametrize("how", ["model", "group"])
def test_offloaded_weights_make_the_same_images(how: Any, demo: Any) -> None:
    pipe = open_pipeline(ModelOptions("demo", offload=how, device="cpu", no_lora=True))
    assert np.abs(images(pipe) - images(demo)).max() <= 1


def test_what_this_machine_cannot_do_is_said(demo: Any) -> None:
    with pytest.raises(InputError, match="--offload sequential needs an accelerator"):
        offload(demo, "sequential", "cpu")
    with pytest.raises(InputError, match="must be one of model, group, sequential"):
        ModelOptions(offload="all")
    with pytest.raises(InputError, match="--compile and --offload sequential do not go together"):
        ModelOptions(offload="sequential", compile=True)


# -- caches and compiling


def deep_flux() -> Tiny:
    """FLUX with blocks enough for a cache to leave some out."""
    case = tiny("flux")
    torch.manual_seed(0)
    case.pipe.transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    return case


@pytest.mark.parametrize("text", ["first-block:0.5", "taylorseer:3", "pyramid", "faster:3"])
def test_a_cache_by_name_leaves_something_out_and_is_exact(text: str) -> None:
    case = deep_flux()
    plain = latents(case, None, [7, 8, 7, 8], 8)
    enable_cache(case.pipe, text)
    assert not torch.allclose(latents(case, None, [7, 8, 7, 8], 8), plain, atol=1e-4)
    assert_exact(case, 8)


@pytest.mark.parametrize(
    "text, words",
    [
        ("first", "must be first-block or taylorseer or pyramid or faster"), ("mag", "not offered: its ratios belong"),
        ("faster:0", "whole number from 2"), ("sea", "not offered"), ("first-block:0", "must be a number above 0"),
        ("first-block:nan", "above 0"), ("first-block:inf", "above 0"), ("first-block:x", "above 0"),
        ("first-block:", "above 0"), ("taylorseer:1", "whole number from 2"), ("taylorseer:2.5", "number from 2"),
        ("pyramid:-3", "whole number"),
    ],
)  # fmt: skip
def test_a_cache_of_another_name_or_number_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_cache(text)
    with pytest.raises(InputError, match=words):
        ModelOptions(cache=text)


def test_a_cache_that_the_family_does_not_take_is_refused(demo: Any) -> None:
    with pytest.raises(InputError, match="diffusers has no caches for UNet2DConditionModel"):
        enable_cache(demo, "first-block")


def test_blocks_that_repeat_are_compiled_or_else_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """That either is exact under sharing is tested in `test_composition.py` and `test_hook.py`."""
    case = tiny("flux")
    transformer = case.pipe.transformer
    compile_denoisers(case.pipe, backend="eager")
    assert case.pipe.transformer is transformer and not is_compiled_in_place(transformer)
    assert all(is_compiled_in_place(block) for block in transformer.transformer_blocks)
    case = tiny("flux")
    monkeypatch.setattr(FluxTransformer2DModel, "_repeated_blocks", [])
    transformer = case.pipe.transformer
    compile_denoisers(case.pipe, backend="eager")
    assert case.pipe.transformer is not transformer and unwrapped(case.pipe.transformer) is transformer


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", none)
    refused("--compile does not work here: no C\\+\\+ compiler", compile=True)


# -- fewer bits


def saved(case: Tiny, folder: Path) -> dict[str, Any]:
    """The pipeline as a folder; what it does without, to load it again."""
    case.pipe.save_pretrained(folder)
    return {name: None for name, part in case.pipe.components.items() if part is None}


def test_int8_weights_are_what_diffusers_makes_of_them(tmp_path: Path) -> None:
    part = "transformer"
    case = tiny("flux")
    absent = saved(case, tmp_path / "model")
    names = {part: type(getattr(case.pipe, part)).__name__}
    file = tmp_path / "quantise.json"
    file.write_text(json.dumps({"quant_backend": "torchao", "quant_kwargs": {"quant_type": "int8wo"}}))
    config = PipelineQuantizationConfig(quant_mapping={part: TorchAoConfig(Int8WeightOnlyConfig())})
    options = {"quantization_config": config, "dtype": torch.float32}
    own = DiffusionPipeline.from_pretrained(tmp_path / "model", **options, **absent)
    plain = latents(case, None, [7, 8, 7, 8])
    digests = []
    single = tmp_path / "single.safetensors"
    save_file(case.pipe.transformer.state_dict(), single)
    model = ModelSource(str(tmp_path / "model"))
    sources = [model, model, ModelSource(str(single), config=model.name)]
    for text, source in zip(("torchao:int8wo", str(file), "torchao:int8wo"), sources, strict=True):
        case.pipe = load_source(source, quantized=quantization(text, names), **absent)
        case.pipe.set_progress_bar_config(disable=True)
        found = latents(case, None, [7, 8, 7, 8])
        assert_exact(case)
        digests.append(weights_digest(case.pipe))
        case.pipe = own
        own.set_progress_bar_config(disable=True)
        torch.testing.assert_close(found, latents(case, None, [7, 8, 7, 8]), rtol=0, atol=1e-6)
        assert not torch.allclose(found, plain, atol=1e-5)
    assert digests[0] == digests[1]


def test_a_gguf_file_is_a_denoiser_in_fewer_bits(tmp_path: Path) -> None:
    case = tiny("flux")
    case.pipe.save_pretrained(tmp_path / "base")
    file = tmp_path / "mine.gguf"
    writer = gguf.GGUFWriter(file, "flux")
    packed, expected = gguf.GGMLQuantizationType.Q8_0, {}
    for name, tensor in case.pipe.transformer.state_dict().items():
        values = tensor.numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "norm" not in name:
            data = gguf.quantize(values, packed)
            writer.add_tensor(name, data, raw_dtype=packed)
            expected[name] = torch.from_numpy(gguf.dequantize(data, packed))
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert expected
    case.pipe.transformer.load_state_dict(case.pipe.transformer.state_dict() | expected)
    wanted = latents(case, None, [7, 8, 7, 8])
    case.pipe = load_pipeline(file, config=tmp_path / "base")
    case.pipe.set_progress_bar_config(disable=True)
    # diffusers unpacks in float16
    torch.testing.assert_close(latents(case, None, [7, 8, 7, 8]), wanted, rtol=0, atol=5e-3)
    assert_exact(case)
    assert weights_digest(case.pipe)


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs torchao: pip install 'sagediff\[quantized\]'"):
        ModelOptions(quantize="torchao:int8wo")
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"needs the package gguf: pip install 'sagediff\[quantized\]'"):
        load_pipeline(tmp_path / "mine.gguf", config=weights_dir())


def test_a_lora_runs_beside_quantised_weights(demo: Any) -> None:
    """It is not merged, as there is nothing to add it to; the prediction is nearly that of whole weights."""
    noise = torch.randn(1, demo.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    words = torch.randn(
        1, 4, demo.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1)
    )
    options = (ModelOptions("demo", quantize=how, device="cpu") for how in ("torchao:int8wo", None))
    pipes = [*map(open_pipeline, options), demo]
    assert [bool(pipe.get_active_adapters()) for pipe in pipes] == [True, False, False]
    with torch.no_grad():
        found, expected, without = (
            pipe.unet(noise, 500, encoder_hidden_states=words).sample for pipe in pipes
        )
    assert (found - expected).abs().mean() < 0.2 * (without - expected).abs().mean()


def test_what_would_not_be_quantised_is_said(tmp_path: Path, demo: Any) -> None:
    """diffusers quantises nothing of a single file, without a word."""
    with pytest.raises(InputError, match="only torchao quantises the weights of a single file"):
        quantized.quantize_loaded(demo.unet, object(), "mine.safetensors")
    with pytest.raises(InputError, match="the vae of demo was not quantised"):
        load_source(
            ModelSource("demo"),
            quantized={"vae": quantization("torchao:int8wo", {"unet": "UNet2DConditionModel"})["unet"]},
        )


@pytest.mark.parametrize(
    "text, words",
    [
        ("torchao:int3", "KIND must be one of int8wo"), ("torchao", "must be torchao:KIND"),
        ("int8", "must be torchao:KIND"), ("missing.json", "must be torchao:KIND"),
    ],
)  # fmt: skip
def test_another_quantisation_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ModelOptions(quantize=text)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not JSON"), ("{}", "expected `quant_backend`"),
        ('{"quant_backend": "x", "quant_kwargs": 3}', "expected"),
        ('{"quant_backend": "x", "quant_kwargs": {}, "more": 1}', "nothing else"),
        ('{"quant_backend": "nonsense", "quant_kwargs": {}}', "unknown `quant_backend` 'nonsense'"),
        ('{"quant_backend": "x", "quant_kwargs": {}, "components_to_quantize": ["vae2"]}', "names 'vae2'; the model"),
        ('{"quant_backend": "torchao", "quant_kwargs": {"quant_type": "os.system"}}', "`quant_type` must be one of"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "quantise.json"
    file.write_text(content)
    refused(words, quantize=str(file))


def test_the_commands_take_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], vae: Path) -> None:
    common = ["generate", *SAME, "--steps", "1", "--no-lora", "--device", "cpu", "--out"]
    assert main([*common, str(tmp_path / "out"), "--vae", str(vae), "--offload", "group"]) == 0
    out = tmp_path / "refused"
    check: Callable[[], str] = lambda: capsys.readouterr().err  # noqa: E731
    check()
    for arguments, words in (
        (["--cache", "mag"], "not offered"), (["--offload", "sequential"], "needs an accelerator"),
        (["--offload", "all"], "--offload"), (["--vae", "none"], "--vae none"), (["--quantize", "int8"], "--quantize"),
    ):  # fmt: skip
        assert main([*common, str(out), *arguments]) == 2
        assert words in check() and not out.exists()
