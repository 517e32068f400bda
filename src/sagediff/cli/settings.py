"""What a run is: the options after defaults are filled in and checked, before any model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagediff.denoiser.scheduler import SCHEDULERS
from sagediff.errors import InputError
from sagediff.pipelines.defaults import DEFAULTS_FILE, folder_defaults, json_object, policy_defaults
from sagediff.pipelines.loading import model_folder
from sagediff.pipelines.lora import lora_file, sharing_record
from sagediff.plan.sharing import SharePolicy


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides which images come out, the prompts excepted."""

    model: str
    policy: SharePolicy
    num_steps: int
    guidance_scale: float | None  # None: the pipeline's own default
    scheduler: str | None
    encoder: str | None
    lora: Path | None
    handover_noise: float = 0.0


def run_settings(
    *,
    model: str,
    steps: int,
    guidance: float | None,
    threshold: float | None,
    share_ratio: float | None,
    shared_guidance: str | None,
    max_group_size: int | None,
    scheduler: str | None,
    encoder: str | None,
    lora: Path | None = None,
    unguided: float | None = None,
    handover_noise: float | None = None,
    policy_file: Path | None = None,
) -> RunSettings:
    """Fill in defaults and check every value.

    What is left out comes from the policy file, then from `sagediff.json` in the LoRA's folder, then from the
    LoRA's own record, which knows the share ratio that it was trained for, then from `sagediff.json` in the
    model's folder, which is for sharing without one. Who names a guidance scale gets it on every step of a
    prompt of its own: only then are steps without guidance and noise at the hand-over, which belong together,
    not taken from a file. Who names a threshold or a share ratio gets a fixed split, without further rungs.

    Raises:
        InputError: a value out of range, an unknown model or scheduler, a LoRA that is not there.
    """
    if steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}")
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise InputError(f"--guidance must be at least 0, got {guidance}")
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InputError(f"unknown --scheduler {scheduler!r}; known are {', '.join(SCHEDULERS)}")
    folder = model_folder(model)
    own = folder_defaults(folder)
    if lora is not None:
        beside = lora if lora.is_dir() else None
        lora = lora_file(lora).resolve()
        own |= _trained_defaults(sharing_record(lora))  # refuses what is no safetensors file
        own |= folder_defaults(beside)
    if policy_file is not None:
        own |= policy_defaults(policy_file)
    if guidance is not None:
        own.pop("unguided", None)
        own.pop("handover_noise", None)
    if threshold is not None or share_ratio is not None:
        own.pop("rungs", None)
    noise = own.get("handover_noise", 0.0) if handover_noise is None else handover_noise
    if not 0 <= noise <= 1:
        raise InputError(f"--handover-noise must lie in [0, 1], got {noise:g}")
    policy = SharePolicy(
        threshold=own.get("threshold", 0.8) if threshold is None else threshold,
        share_ratio=own.get("share_ratio", 0.4) if share_ratio is None else share_ratio,
        max_group_size=own.get("max_group_size", 8) if max_group_size is None else max_group_size,
        shared_guidance=own.get("shared_guidance", 1.0)
        if shared_guidance is None
        else _shared_guidance(shared_guidance),
        unguided=own.get("unguided", 0.0) if unguided is None else unguided,
        rungs=own.get("rungs", ()),
        parting=own.get("parting", "tree"),
    )
    return RunSettings(
        model if folder is None or model == "demo" else str(folder.resolve()),
        policy,
        steps,
        own.get("guidance_scale") if guidance is None else guidance,
        scheduler,
        encoder,
        lora,
        noise,
    )


def chosen_lora(model: str, lora: Path | None, no_lora: bool) -> Path | None:
    """The LoRA of a run: the one named, else the one that comes with the built-in model.

    Raises:
        InputError: one is named and none is wanted.
    """
    if lora is not None and no_lora:
        raise InputError("give --lora or --no-lora, not both")
    if lora is None and model == "demo" and not no_lora:
        from sagediff.builtin.scenes import lora_dir

        return lora_dir()
    return lora


def _trained_defaults(record: dict[str, Any] | None) -> dict[str, Any]:
    """The share ratio in the middle of those that a LoRA was trained for, if its record tells."""
    ratio = (record or {}).get("share_ratio")
    return (
        {"share_ratio": float(ratio), "rungs": ()}
        if isinstance(ratio, int | float) and 0 < ratio <= 1
        else {}
    )


def lora_and_scheduler(
    model: str, lora: Path | None, no_lora: bool, scheduler: str | None, steps: int
) -> tuple[Path | None, str | None]:
    """Both as named, else as the model has them: a solver for sharing only where no LoRA was trained for it.

    Raises:
        InputError: a LoRA is named and none is wanted.
    """
    chosen = chosen_lora(model, lora, no_lora)
    if chosen is None and scheduler is None:
        scheduler = preferred_scheduler(model, steps)
    return chosen, scheduler


def preferred_scheduler(model: str, steps: int) -> str | None:
    """The solver that a model's folder names for sharing without a LoRA, if the run has as many steps as it asks for.

    `sagediff.json` may hold `"scheduler": {"name": ..., "least_steps": ...}`. None: the model's own.

    Raises:
        InputError: the entry is not of that form.
    """
    folder = model_folder(model)
    entry = None if folder is None else json_object(folder / DEFAULTS_FILE).get("scheduler")
    if entry is None:
        return None
    name, least = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "least_steps"))
    if name not in SCHEDULERS or isinstance(least, bool) or not isinstance(least, int):
        raise InputError(
            f"{folder}/{DEFAULTS_FILE}: `scheduler` should hold a `name` ({', '.join(SCHEDULERS)}) and a whole "
            f"number `least_steps`, got {entry!r}"
        )
    return str(name) if steps >= least else None


def quiet_libraries() -> None:
    """No bars for loading from disk: stderr is for what takes long. Downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _shared_guidance(text: str) -> float | None:
    if text == "same":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--shared-guidance must be a number or 'same', got {text!r}") from None
