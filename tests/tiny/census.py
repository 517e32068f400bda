"""The pipeline classes that diffusers has, and how far each is told: derived from diffusers, no pipeline is built."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.pipelines.pipeline_utils import DeprecatedPipelineMixin

from sagediff.denoiser.refused import NOT_TEXT_SAMPLERS, REFUSED
from tiny.every_pipeline import EVERY

IN_DEPTH: dict[str, str] = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux2": "Flux2Pipeline",
    "flux2-klein": "Flux2KleinPipeline",
    "pixart-alpha": "PixArtAlphaPipeline",
    "pixart-sigma": "PixArtSigmaPipeline",
    "sana": "SanaPipeline",
    "auraflow": "AuraFlowPipeline",
    "chroma": "ChromaPipeline",
    "cogview4": "CogView4Pipeline",
    "hunyuandit": "HunyuanDiTPipeline",
    "lumina2": "Lumina2Pipeline",
    "qwen-image": "QwenImagePipeline",
    "z-image": "ZImagePipeline",
    "kandinsky2.2": "KandinskyV22Pipeline",
    "wan": "WanPipeline",
    "wan2.2": "WanPipeline",
    "wan2.2-tokens": "WanPipeline",
    "ltx": "LTXPipeline",
}
"""The pipeline classes of `tiny.RECIPES`, which are tested in depth."""

_PIPELINES = Path(inspect.getfile(diffusers)).parent / "pipelines"
_PART = re.compile(
    r"unet|transformer|prior|decoder|denoiser"
)  # of a pipeline, by the names of its parameters


@cache
def current_pipelines() -> dict[str, type]:
    """Every pipeline class that diffusers exports and does not call deprecated, by name.

    Those that need a library which is missing here are read all the same: their own modules do without.
    """
    exported = {name for names in diffusers._import_structure.values() for name in names}
    found: dict[str, type] = {}
    for name in sorted(exported):
        cls = getattr(diffusers, name)
        if getattr(cls, "__module__", "").startswith("diffusers.utils.dummy") and "Pipeline" in name:
            cls = _beside_its_dummy(name)
        if isinstance(cls, type) and issubclass(cls, DiffusionPipeline) and cls is not DiffusionPipeline:
            found[name] = cls
    return {name: cls for name, cls in found.items() if not _is_deprecated(cls)}


def modular_pipelines() -> set[str]:
    """Every class of modular pipelines that diffusers exports, by name."""
    exported = {name for names in diffusers._import_structure.values() for name in names}
    return {
        name
        for name in exported
        if name.endswith("ModularPipeline")
        and issubclass(getattr(diffusers, name), diffusers.ModularPipeline)
        and getattr(diffusers, name) is not diffusers.ModularPipeline
    }


def _beside_its_dummy(name: str) -> Any:
    for file in sorted(_PIPELINES.rglob("pipeline_*.py")):
        if re.search(rf"^class {name}\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            module = ".".join(file.relative_to(_PIPELINES).with_suffix("").parts)
            return getattr(importlib.import_module(f"diffusers.pipelines.{module}"), name)
    return None  # not torch's


def _is_deprecated(cls: type) -> bool:
    return issubclass(cls, DeprecatedPipelineMixin) or ".deprecated." in cls.__module__


def takes_prompts(cls: type) -> bool:
    """Whether a pipeline's call takes texts, or the embeddings that Kandinsky's priors make of them."""
    parameters = inspect.signature(cls.__call__).parameters  # type: ignore[operator]
    texts = [
        name
        for name in parameters
        if name in ("prompt", "prompt_embeds")
        or (name.endswith("_prompt") and not name.startswith(("num_", "negative_")))
    ]
    return bool(texts) or {"image_embeds", "negative_image_embeds"} <= set(parameters)


def denoisers(cls: type) -> tuple[str, ...]:
    """The classes of the denoisers that a pipeline is made with."""
    found: dict[str, None] = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():  # type: ignore[misc]
        if _PART.search(name):
            parts = _classes(parameter.annotation, vars(importlib.import_module(cls.__module__)))
            found |= dict.fromkeys(part.__name__ for part in parts if _denoises(part))
    return tuple(found)


def _classes(annotation: Any, names: dict[str, Any]) -> list[type]:
    if isinstance(annotation, str):
        words = [names.get(word) or getattr(diffusers, word, None) for word in re.findall(r"\w+", annotation)]
        return [cls for cls in words if isinstance(cls, type)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [cls for part in typing.get_args(annotation) for cls in _classes(part, names)]
    return [annotation] if isinstance(annotation, type) else []


def _denoises(cls: type) -> bool:
    places = ("diffusers.models.transformers.", "diffusers.models.unets.", "diffusers.pipelines.")
    return issubclass(cls, ModelMixin) and cls.__module__.startswith(places)


def exact() -> set[str]:
    """The pipeline classes that a recipe runs."""
    return {name.partition(",")[0] for name in EVERY} | set(IN_DEPTH.values())


def untold() -> list[str]:
    """Current pipeline classes that take prompts and are in no list."""
    told = exact() | REFUSED.keys() | NOT_TEXT_SAMPLERS.keys()
    return [name for name, cls in current_pipelines().items() if name not in told and takes_prompts(cls)]
