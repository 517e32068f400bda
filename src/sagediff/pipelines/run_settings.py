"""What a run is: model, sampling and sharing, after defaults are filled in and checked, before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sagediff.denoiser.scheduler import SCHEDULERS
from sagediff.errors import InputError
from sagediff.files.digest import file_digest
from sagediff.files.json_input import SMALL, read_object
from sagediff.options import check, check_value, option
from sagediff.pipelines.loading import BUILT_IN, built_in_folder, model_folder
from sagediff.pipelines.lora import lora_file, sharing_record
from sagediff.plan.sharing import Sharing, for_guidance

DEFAULTS_FILE = "sagediff.json"  # in a model's or a LoRA's folder: how it is best sampled


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and on what."""

    name: str = option(
        "demo", "'demo' or 'emoji' (built in), a local diffusers folder, or a hub id.", flag="model"
    )
    lora: Path | None = option(
        None, "LoRA weights: a .safetensors file or a folder that holds one [default: the demo's own]."
    )
    no_lora: bool = option(False, "Run the demo without the LoRA that comes with it.")
    scheduler: str | None = option(
        None, f"Solver: {', '.join(SCHEDULERS)} [default: the model's own].", choices=tuple(SCHEDULERS)
    )
    device: str = option("auto", "'auto', 'cpu', 'cuda', 'mps' and so on.")
    dtype: str = option(
        "auto",
        "'auto' (float32 on the CPU; on an accelerator the half precision that suits the model), float32, float16 or "
        "bfloat16.",
        choices=("auto", "float32", "float16", "bfloat16"),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.lora is not None and self.no_lora:
            raise InputError("give --lora or --no-lora, not both")

    def chosen_lora(self) -> Path | None:
        """The LoRA of a run: the one named, else the one that comes with a built-in model; None without."""
        if self.lora is not None or self.no_lora or self.name not in BUILT_IN:
            return self.lora
        own = built_in_folder(self.name) / "lora"
        return own if own.is_dir() else None


@dataclass(frozen=True)
class SamplingOptions:
    """How images are sampled, whatever is shared."""

    num_inference_steps: int = option(30, "Sampling steps.", low=1, high=10_000, flag="steps")
    guidance_scale: float | None = option(
        None, "Guidance scale [default: the model's own].", low=0, flag="guidance"
    )
    encoder: str | None = option(
        None,
        "A sentence-transformers model to group prompts by [default: the model's own text encoder].",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides which images come out, the prompts and the seed excepted.

    Attributes:
        model: with the solver and the LoRA's file that are really used.
        sampling: guidance_scale None is the pipeline's own default.
        measured: whether `sagediff tune` measured this sharing with this LoRA and as many steps.
    """

    model: ModelOptions
    sampling: SamplingOptions
    sharing: Sharing
    measured: bool = False

    def record(self) -> dict[str, Any]:
        """What a run that goes on must repeat, as JSON has it."""
        lora = None if self.model.lora is None else str(self.model.lora)
        model = {"model": self.model.name, "lora": lora, "scheduler": self.model.scheduler}
        return model | asdict(self.sampling) | self.sharing.record()


def resolve(
    model: ModelOptions,
    sampling: SamplingOptions = SamplingOptions(),
    given: Mapping[str, Any] | None = None,
    policy: Path | None = None,
) -> RunSettings:
    """Fill in what is left out.

    An option of sharing comes from `given`, else from the policy file, else from `sagediff.json` in the LoRA's folder,
    else from the LoRA's own record, which knows the share ratio that it was trained for, else from `sagediff.json` in
    the model's folder, which is for sharing without one. Who names a guidance scale gets it on every step of a prompt
    of its own: options for sampling without guidance are then taken from nowhere but `given`.

    Args:
        given: options of `Sharing` by name, as the user named them.
        policy: a file as `Sharing.save` writes it; it may name a `guidance_scale` as well.

    Raises:
        InputError: a value out of range, an unknown model, or a file that is not there or not what it should be.
    """
    folder = model_folder(model.name)
    layers = [_file_layer(folder)]
    chosen = model.chosen_lora()
    lora = None if chosen is None else lora_file(chosen).resolve()
    if lora is not None and chosen is not None:
        layers.append(_trained_layer(sharing_record(lora)))  # refuses what is no safetensors file
        layers.append(_file_layer(chosen if chosen.is_dir() else None))
    if policy is not None:
        layers.append(_layer(policy))
    scale = sampling.guidance_scale
    if scale is not None:
        layers = [for_guidance(layer) for layer in layers]
    else:
        scale = next((layer["guidance_scale"] for layer in layers[::-1] if "guidance_scale" in layer), None)
    sharing = Sharing.merged(
        *({k: v for k, v in layer.items() if k != "guidance_scale"} for layer in layers),
        Sharing.layer(given or {}),
    )
    scheduler = model.scheduler
    if scheduler is None and lora is None:
        scheduler = _preferred_scheduler(folder, sampling.num_inference_steps)
    name = model.name if folder is None or model.name in BUILT_IN else str(folder.resolve())
    return RunSettings(
        replace(model, name=name, lora=lora, no_lora=lora is None, scheduler=scheduler),
        replace(sampling, guidance_scale=scale),
        sharing,
        policy is not None and _measured(policy, sharing, lora, sampling.num_inference_steps),
    )


def _measured(policy: Path, sharing: Sharing, lora: Path | None, steps: int) -> bool:
    found = read_object(policy)
    tuned = found.get("tuned")
    if not isinstance(tuned, dict) or tuned.get("num_steps") != steps:
        return False
    if tuned.get("by", "quality") != "quality":  # predicted, and no image was looked at
        return False
    if sharing != Sharing.merged(Sharing.layer(found, str(policy))):  # options named beside it
        return False
    return bool(tuned.get("lora") == (None if lora is None else file_digest(lora)))


def own_sharing(folder: Path | None) -> Sharing:
    """The sharing that a model's folder is for, without a LoRA; the defaults where it does not say.

    Raises:
        InputError: its `sagediff.json` is not what it should be.
    """
    return Sharing.merged({k: v for k, v in _file_layer(folder).items() if k != "guidance_scale"})


def _file_layer(folder: Path | None) -> dict[str, Any]:
    """What the file in a model's or a LoRA's folder says; nothing where there is none."""
    if folder is None or not (folder / DEFAULTS_FILE).is_file():
        return {}
    return _layer(folder / DEFAULTS_FILE)


def _layer(file: Path) -> dict[str, Any]:
    found = read_object(file, max_bytes=SMALL)
    layer = Sharing.layer(found, str(file))
    if "guidance_scale" in found:
        check_value(SamplingOptions, "guidance_scale", found["guidance_scale"], f"{file}: `guidance_scale`")
        layer["guidance_scale"] = found["guidance_scale"]
    return layer


def _trained_layer(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The share ratio in the middle of those that a LoRA was trained for, if its record tells."""
    ratio = (record or {}).get("share_ratio")
    told = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 < ratio <= 1
    return Sharing.layer({"share_ratio": ratio}) if told else {}


def _preferred_scheduler(folder: Path | None, steps: int) -> str | None:
    """The solver that a model's folder names for sharing without a LoRA, if the run has as many steps as it asks for.

    `sagediff.json` may hold `"scheduler": {"name": ..., "least_steps": ...}`. None: the model's own.

    Raises:
        InputError: the entry is not of that form.
    """
    file = None if folder is None else folder / DEFAULTS_FILE
    entry = (
        read_object(file, max_bytes=SMALL).get("scheduler") if file is not None and file.is_file() else None
    )
    if entry is None:
        return None
    name, least = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "least_steps"))
    if name not in SCHEDULERS or isinstance(least, bool) or not isinstance(least, int):
        raise InputError(
            f"{file}: `scheduler` should hold a `name` ({', '.join(SCHEDULERS)}) and a whole number `least_steps`, got "
            f"{entry!r}"
        )
    return str(name) if steps >= least else None
