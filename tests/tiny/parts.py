"""What tiny pipelines are put together from: solvers, prompts as numbers, and what a recipe for one says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)

WIDTH = 16  # of token and pooled embeddings
TOKENS = 3
NO_TEXT: dict[str, Any] = {"text_encoder": None, "tokenizer": None}

# Milder than Stable Diffusion's: random weights predict no noise, so latents grow by 1 / alpha of the last
# timestep. At 14 (theirs) a bar of 1e-5 would lie below float32's rounding, at 1.7 it does not.
_BETAS: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.002, "beta_schedule": "linear"}
_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
SCHEDULERS: dict[str, Any] = {
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**_BETAS),
    "dpmpp_sde": lambda: DPMSolverMultistepScheduler(**_BETAS, algorithm_type="sde-dpmsolver++"),
    "dpmpp_flow": lambda: DPMSolverMultistepScheduler(**_FLOW),
    "ddim": lambda: DDIMScheduler(**_BETAS, clip_sample=False),
    "ddpm": lambda: DDPMScheduler(**_BETAS, clip_sample=False),
    "ddpm_learned": lambda: DDPMScheduler(**_BETAS, clip_sample=False, variance_type="learned_range"),
    "euler": lambda: EulerDiscreteScheduler(**_BETAS),
    "euler_a": lambda: EulerAncestralDiscreteScheduler(**_BETAS),
    "heun": lambda: HeunDiscreteScheduler(**_BETAS),
    "lcm": lambda: LCMScheduler(**_BETAS, clip_sample=False),
    "scm": SCMScheduler,
    "unipc": lambda: UniPCMultistepScheduler(**_BETAS),
    "unipc_flow": lambda: UniPCMultistepScheduler(**_FLOW),
    "pndm": lambda: PNDMScheduler(**_BETAS, skip_prk_steps=True),
    "pndm_prk": lambda: PNDMScheduler(**_BETAS),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0),
}


@dataclass(frozen=True)
class Recipe:
    """How to build a tiny pipeline, and how to call it.

    Attributes:
        build: makes the pipeline around a scheduler.
        inputs: what it is called with for prompts, each a number, guided or not.
        counted: a submodule of the denoiser whose input has one row for each denoiser row.
        schedulers: of `SCHEDULERS`, those that it is tested with; the first is its own.
        words: for conditions that tell words from padding, how many a prompt has.
        rows: denoiser rows per prompt, unguided and guided; None where the pipeline has no such run.
    """

    build: Callable[[Any], Any]
    inputs: Callable[[Sequence[int], bool], dict[str, Any]]
    counted: Callable[[Any], torch.nn.Module]
    schedulers: tuple[str, ...] = ("flow",)
    words: tuple[str, ...] = ()
    rows: tuple[int | None, int | None] = (1, 2)


def embeddings(prompts: Sequence[int], tokens: int | None = None) -> torch.Tensor:
    """(N, WIDTH), or (N, tokens, WIDTH): the same for the same number, always."""
    shape = (WIDTH,) if tokens is None else (tokens, WIDTH)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(p + 1000)) for p in prompts]
    )


def count_words(prompt: int) -> int:
    """Words of a prompt, from 1 to TOKENS."""
    return 1 + prompt % TOKENS


def masks(prompts: Sequence[int]) -> torch.Tensor:
    """(N, TOKENS) of bool: the words of each prompt."""
    return torch.arange(TOKENS) < torch.tensor([count_words(prompt) for prompt in prompts])[:, None]


def padded(prompts: Sequence[int], padding: float) -> torch.Tensor:
    """(N, TOKENS, WIDTH): embeddings of each prompt's words, then `padding`."""
    return torch.where(masks(prompts)[..., None], embeddings(prompts, TOKENS), torch.tensor(padding))


def masked(prompts: Sequence[int], prefix: str = "", suffix: str = "") -> dict[str, torch.Tensor]:
    """Embeddings and mask by the names that most pipelines give them. What the padding holds is large."""
    return {
        f"{prefix}prompt_embeds{suffix}": padded(prompts, 9.0),
        f"{prefix}prompt_attention_mask{suffix}": masks(prompts).long(),
    }


def plain_inputs(prompts: Sequence[int], guided: bool, **options: Any) -> dict[str, Any]:
    """Prompts of one length for pipelines that take no mask."""
    inputs: dict[str, Any] = {"prompt_embeds": embeddings(prompts, TOKENS)}
    if guided:
        inputs["negative_prompt_embeds"] = embeddings([-1] * len(prompts), TOKENS)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0} | options


def masked_inputs(prompts: Sequence[int], guided: bool, **options: Any) -> dict[str, Any]:
    """Prompts of different length with their masks."""
    inputs: dict[str, Any] = masked(prompts)
    if guided:
        inputs |= masked([-1] * len(prompts), "negative_")
    return inputs | {"guidance_scale": 4.0 if guided else 1.0} | options


def louder(model: Any, factor: float) -> Any:
    """Weights made larger, where what a prompt says would else hardly reach the image."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


@contextmanager
def spoiled(module: torch.nn.Module, rows: list[int], value: float) -> Iterator[None]:
    """Rows of the module's output, of three prompts each, are no numbers."""

    def spoil(module: Any, args: Any, output: Any) -> Any:
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        for row in rows:
            sample[row::3] = value
        return output

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()
