"""Sharing with other features of diffusers switched on: nothing shared, and equal prompts, change no image of theirs.

Caches on the denoiser are in `test_caches.py`.  Each feature is switched on on a real tiny pipeline; what sharing
refuses is at the end, and in `test_hook.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from PIL import Image
from tiny import WIDTH, Tiny, embeddings, tiny

from sagediff.errors import PlanError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 5
GROUPS = [[0, 2, 3], [1]]
EQUAL = [7, 8, 7, 7]
DIFFERENT = [3, 4, 5, 6]
TOLERANCE = 1e-5


@dataclass
class Feature:
    """A feature to switch on.

    Attributes:
        on: switches it on, on a tiny pipeline; may replace the pipeline.
        families: those it is tested with.
        inputs: further arguments of the pipeline's call, for prompts.
        changes: whether the images differ from those without it.
        renews: whether the pipeline itself puts a new forward on the denoiser after each run.
    """

    on: Callable[[Tiny], None]
    families: tuple[str, ...] = ("sd", "flux")
    inputs: Callable[[list[int]], dict[str, Any]] = field(default=lambda prompts: {})
    changes: bool = False
    renews: bool = False


# -- features --------------------------------------------------------------------------------------


def lora(case: Tiny) -> None:
    """Two adapters, both active and not fused, with weights that do something."""
    for name in ("one", "two"):
        case.denoiser.add_adapter(
            LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), name
        )
    case.denoiser.set_adapters(["one", "two"], [0.7, 0.4])


def lora_fused(case: Tiny) -> None:
    lora(case)
    case.denoiser.fuse_lora()


def layerwise(case: Tiny) -> None:
    case.denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def group_offloading(case: Tiny) -> None:
    """From the processor to itself: the hooks and the copying run, no accelerator is needed."""
    apply_group_offloading(case.denoiser, onload_device=torch.device("cpu"), offload_type="leaf_level")


def offloading_by_blocks(case: Tiny) -> None:
    apply_group_offloading(
        case.denoiser, onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


def model_offloading(case: Tiny) -> None:
    case.pipe.enable_model_cpu_offload(device="cpu")  # accelerate's hooks, from the processor to itself


def compiled_blocks(case: Tiny) -> None:
    torch.compiler.reset()
    case.denoiser.compile_repeated_blocks(backend="eager")


def controlnet(case: Tiny) -> None:
    net = ControlNetModel.from_unet(case.pipe.unet, conditioning_embedding_out_channels=(8, 8)).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "controlnet" in name:  # zero at first, as nothing was learnt
                weight.normal_(std=0.3)
    parts = {
        name: getattr(case.pipe, name) for name in ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
    }
    case.pipe = StableDiffusionControlNetPipeline(
        **parts, controlnet=net, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    case.pipe.set_progress_bar_config(disable=True)


def random_image(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def control_inputs(prompts: list[int]) -> dict[str, Any]:
    """An image for each prompt, of its own for different prompts."""
    return {"image": [random_image(prompt) for prompt in prompts], "controlnet_conditioning_scale": 0.8}


def ip_adapter(case: Tiny) -> None:
    weights: dict[str, torch.Tensor] = {}
    key = 1
    for name, _ in case.pipe.unet.attn_processors.items():
        if name.endswith("attn1.processor"):
            continue
        module = case.pipe.unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{key}.{part}.weight"] = torch.randn(module.to_k.weight.shape)
        key += 2
    projection = {
        "proj.weight": torch.randn(4 * WIDTH, WIDTH),
        "proj.bias": torch.randn(4 * WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    case.pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    case.pipe.set_ip_adapter_scale(0.6)


def ip_inputs(prompts: list[int]) -> dict[str, Any]:
    """One reference image for all prompts, as the pipeline takes it."""
    return {"ip_adapter_image_embeds": [torch.cat([torch.zeros(1, 1, WIDTH), embeddings([1])[None]])]}


def vae_in_parts(case: Tiny) -> None:
    case.pipe.vae.enable_slicing()
    case.pipe.vae.enable_tiling()


def reading(prompts: list[int]) -> dict[str, Any]:
    """A callback that reads the latents and changes nothing."""

    def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        assert len(values["latents"]) == len(prompts)
        return values

    return {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": ["latents"]}


def interrupting(prompts: list[int]) -> dict[str, Any]:
    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 2
        return values

    return {"callback_on_step_end": stop}


def nothing(case: Tiny) -> None:
    pass


FEATURES = {
    "lora": Feature(lora, changes=True),
    "lora, fused": Feature(lora_fused, changes=True),
    "lora scale": Feature(lora, ("flux", "sd3"), lambda _: {"joint_attention_kwargs": {"scale": 0.5}}, True),
    # traced anew for every number of rows, which takes seconds; a whole denoiser is compiled in test_hook.py
    "compile blocks": Feature(compiled_blocks, ("flux",)),
    "layerwise casting": Feature(layerwise, changes=True),
    "group offloading": Feature(group_offloading),
    "group offloading by blocks": Feature(offloading_by_blocks),
    "model offloading": Feature(model_offloading, renews=True),
    "attention slicing": Feature(lambda case: case.pipe.enable_attention_slicing(1), ("sd",)),
    "VAE slicing and tiling": Feature(vae_in_parts, inputs=lambda _: {"output_type": "pt"}, changes=True),
    "callback": Feature(nothing, ("sd", "flux", "sd3"), reading),
    "interrupt": Feature(nothing, ("sd", "flux", "sd3"), interrupting, True),
    "ControlNet": Feature(controlnet, ("sd",), control_inputs, True),
    "IP-Adapter": Feature(ip_adapter, ("sd",), ip_inputs, True),
}
CASES = [(name, family) for name, feature in FEATURES.items() for family in feature.families]


# -- exactness -------------------------------------------------------------------------------------


def make_plan(ratio: float, **options: Any) -> SharePlan:
    return SharePlan.from_groups(GROUPS, num_steps=STEPS, share_ratio=ratio, **options)


def traces(case: Tiny) -> list[Any]:
    """What sharing could leave behind."""
    inner = getattr(case.denoiser, "_orig_mod", case.denoiser)
    names = [sorted(vars(thing)) for thing in (case.pipe, case.pipe.scheduler, case.denoiser, inner)]
    return [case.denoiser.forward, type(case.denoiser), names]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_exact_with(name: str, family: str) -> None:
    """Ratio 0 and equal prompts give the images of the pipeline with the feature on, which is left as it was found."""
    feature, case = FEATURES[name], tiny(family)
    plain = case(DIFFERENT, STEPS, make_plan(0.4).generators(0))
    feature.on(case)
    inputs = feature.inputs
    case(
        DIFFERENT, STEPS, make_plan(0.4).generators(0), **inputs(DIFFERENT)
    )  # offloading settles in the first run
    before = traces(case)

    def shared(plan: SharePlan, prompts: list[int], **options: Any) -> torch.Tensor:
        with shared_sampling(case.pipe, plan, **options) as run:
            images = case(prompts, STEPS, plan.generators(0), **inputs(prompts))
        assert traces(case)[feature.renews :] == before[feature.renews :]
        assert name == "interrupt" or run.evaluations == run.plan.evaluations
        return images

    expected = case(DIFFERENT, STEPS, make_plan(0.0).generators(0), **inputs(DIFFERENT))
    torch.testing.assert_close(shared(make_plan(0.0), DIFFERENT), expected, rtol=0, atol=TOLERANCE)
    if feature.changes:
        alike = case(DIFFERENT, STEPS, make_plan(0.4).generators(0), **inputs(DIFFERENT))
        assert alike.shape != plain.shape or not torch.allclose(alike, plain, atol=1e-3)

    expected = case(EQUAL, STEPS, make_plan(0.4).generators(0), **inputs(EQUAL))
    for ratio in (0.4, 1.0):
        plan = make_plan(ratio)
        assert plan.evaluations < plan.evaluations_independent
        torch.testing.assert_close(shared(plan, EQUAL), expected, rtol=0, atol=TOLERANCE)
    off = make_plan(0.4, shared_guidance=1.0)
    images = shared(off, DIFFERENT)
    in_parts = shared(off, DIFFERENT, micro_batch_size=2)
    torch.testing.assert_close(in_parts, images, rtol=0, atol=TOLERANCE)


def test_control_images_of_their_own_part_the_members() -> None:
    case = tiny("sd")
    controlnet(case)
    plan = make_plan(0.4)
    images = []
    for prompts in (DIFFERENT, [3, 4, 9, 6]):
        with shared_sampling(case.pipe, plan) as run:
            images.append(case(EQUAL, STEPS, plan.generators(0), **control_inputs(prompts)))
        assert run.evaluations == run.plan.evaluations
    assert not torch.allclose(
        images[0][0], images[0][2], atol=1e-3
    )  # equal prompts, different control images
    torch.testing.assert_close(images[0][1], images[1][1], rtol=0, atol=TOLERANCE)  # the outsider


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_exact_from_a_image(strength: float) -> None:
    """Image to image: the plan has the steps that the strength leaves, and members start from the same image."""
    case = tiny("sd", "dpmpp_2m")
    names = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
    case.pipe = StableDiffusionImg2ImgPipeline(
        **{name: getattr(case.pipe, name) for name in names},
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    case.pipe.set_progress_bar_config(disable=True)

    def run(prompts: list[int], plan: SharePlan, steps: int = 10) -> torch.Tensor:
        inputs = case.recipe.inputs(prompts, True)
        start = [random_image(0, 16)] * len(prompts)
        return case.pipe(
            **inputs, image=start, strength=strength, num_inference_steps=steps, generator=plan.generators(0),
            output_type="latent",
        ).images  # fmt: skip

    left = int(10 * strength)
    for ratio, prompts in ((0.0, DIFFERENT), (0.4, EQUAL), (1.0, EQUAL)):
        plan = SharePlan.from_groups(GROUPS, num_steps=left, share_ratio=ratio)
        expected = run(prompts, plan)
        with shared_sampling(case.pipe, plan) as shared:
            images = run(prompts, plan)
        assert shared.evaluations == shared.plan.evaluations
        torch.testing.assert_close(images, expected, rtol=0, atol=TOLERANCE)
    if left != 10:
        plan = SharePlan.from_groups(GROUPS, num_steps=10, share_ratio=0.4)
        with pytest.raises(PlanError, match="plan only the steps"), shared_sampling(case.pipe, plan):
            run(EQUAL, plan)


def test_an_interrupted_run_costs_less() -> None:
    case = tiny("sd3")
    plan = make_plan(0.4)
    with shared_sampling(case.pipe, plan) as run:
        case(DIFFERENT, STEPS, plan.generators(0), **interrupting(DIFFERENT))
    assert run.step == 3
    assert run.evaluations == 2 * 4 + 1 * 8  # of two shared steps and one past the branch point
    with shared_sampling(case.pipe, plan) as run:
        case(DIFFERENT, STEPS, plan.generators(0))
    assert run.evaluations == run.plan.evaluations


# -- refused ---------------------------------------------------------------------------------------


def test_compiled_in_place_is_refused() -> None:
    """Sharing itself would be compiled, and its decisions with it."""
    case = tiny("sd")
    case.denoiser.compile(backend="eager")
    before = traces(case)
    with (
        pytest.raises(UnsupportedPipelineError, match="compiled in place"),
        shared_sampling(case.pipe, make_plan(0.4)),
    ):
        pass
    assert traces(case) == before
