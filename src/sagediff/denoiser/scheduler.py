"""What sharing knows of schedulers: solvers by short name, calls of the denoiser per step, predictions, noise levels.

Nothing else in the package recognises a scheduler by its class.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagediff.errors import InputError, PlanError, UnsupportedPipelineError

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # short name -> class, changes to its configuration
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-beta": ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
}


def scheduler_like(own: Any, name: str, model: str | Path) -> Any:
    """The scheduler of a short name, with the configuration of the model's own.

    Some models are made for flow matching with a solver for diffusion that knows flow too (Sana, Wan).

    Raises:
        InputError: one of them is for flow matching, the other is not.
    """
    import diffusers

    class_name, changes = SCHEDULERS[name]
    kind = getattr(diffusers, class_name)
    matching, wants_matching = (cls.__name__.startswith("FlowMatch") for cls in (type(own), kind))
    knows_flow = "use_flow_sigmas" in inspect.signature(kind).parameters and not changes.get(
        "use_beta_sigmas"
    )
    is_flow = matching or bool(own.config.get("use_flow_sigmas"))
    if (wants_matching and not is_flow) or (not wants_matching and is_flow and (matching or not knows_flow)):
        own_name = type(own).__name__ + ("" if matching or not is_flow else " with flow")
        raise _misfit(class_name, own_name, model)
    shift = {"shift": own.config.flow_shift} if wants_matching and not matching else {}
    return kind.from_config(own.config, **changes, **shift)


def check_scheduler(name: str, config: Mapping[str, Any], model: str | Path) -> None:
    """As `scheduler_like`, from the configuration of the model's own scheduler, as far as that tells without diffusers.

    Raises:
        InputError: as there.
    """
    class_name, own = SCHEDULERS[name][0], config.get("_class_name")
    if not isinstance(own, str) or config.get("use_flow_sigmas"):
        return
    if class_name.startswith("FlowMatch") != own.startswith("FlowMatch"):
        raise _misfit(class_name, own, model)


def _misfit(class_name: str, own: str, model: str | Path) -> InputError:
    return InputError(
        f"the scheduler {class_name} does not fit the model {str(model)!r}, which was made for {own}: one of them is "
        "for flow matching, the other is not"
    )


def _is_a(scheduler: Any, class_name: str) -> bool:
    return any(cls.__name__ == class_name for cls in type(scheduler).__mro__)


# -- calls and timesteps ---------------------------------------------------------------------------

_WITH_LAST = (
    "SCMScheduler",
    "DDPMWuerstchenScheduler",
)  # their timesteps end with the one that is arrived at


def _taken(scheduler: Any) -> Any:
    """The scheduler's timesteps at which it is called."""
    has_last = any(_is_a(scheduler, name) for name in _WITH_LAST)
    return scheduler.timesteps[:-1] if has_last else scheduler.timesteps


def first_call(scheduler: Any, num_steps: int, may_skip: bool) -> int:
    """Number of the first of the scheduler's timesteps that is taken; image-to-image pipelines begin later.

    Args:
        num_steps: of the plan.
        may_skip: whether the pipeline may begin later. Some solvers (DDIM, DDPM, PNDM) are not told where: then it is
            taken to be where the plan's steps are left, which `check_first_timestep` sees to.
    """
    if hasattr(scheduler, "set_begin_index"):
        return getattr(scheduler, "begin_index", None) or 0
    count = len(_taken(scheduler))
    if not may_skip or sum(planned_calls(scheduler, num_steps)) == count:
        return 0
    return max(0, count - sum(planned_calls(scheduler, num_steps, from_start=False)))


def timesteps_of(scheduler: Any, first: int = 0) -> tuple[float, ...]:
    """The timestep of every call of the solver from the first one on, after `set_timesteps`."""
    return tuple(float(t) for t in _taken(scheduler)[first:])


def calls_per_step(scheduler: Any, num_steps: int, first: int = 0) -> tuple[int, ...]:
    """Denoiser calls of every step, read from the scheduler's timesteps after `set_timesteps`.

    Args:
        first: number of the first timestep that is taken.

    Raises:
        PlanError: the scheduler was set to another number of steps than the plan has.
    """
    timesteps = len(_taken(scheduler)) - first
    calls = planned_calls(scheduler, num_steps, from_start=first == 0)
    if sum(calls) != timesteps:
        raise PlanError(
            f"the share plan has {num_steps} steps ({sum(calls)} calls of {type(scheduler).__name__}), but "
            f"the pipeline's scheduler is set to {timesteps} calls; make them equal, e.g. "
            f"num_inference_steps=plan.num_steps (with an image-to-image strength, plan only the steps that "
            f"it leaves)"
        )
    return calls


def planned_calls(scheduler: Any, num_steps: int, from_start: bool = True) -> tuple[int, ...]:
    """Denoiser calls that each step of this kind of solver takes, before any timesteps are set."""
    pndm = _is_a(scheduler, "PNDMScheduler")
    if pndm and from_start and scheduler.config.skip_prk_steps:
        return (2,) + (1,) * (num_steps - 1) if num_steps > 1 else (1,)  # the first step is taken twice
    if pndm and from_start:
        return (4, 4, 4) + (1,) * (num_steps - 3)  # three Runge-Kutta steps to start with
    if getattr(scheduler, "order", 1) == 2:
        return (2,) * (num_steps - 1) + (1,)  # the last step of Heun's method is Euler's
    return (1,) * num_steps


def check_first_timestep(scheduler: Any, timestep: Any, first: int = 0) -> None:
    """The first scheduler call must be at the first timestep.

    Args:
        first: number of the timestep that is taken first.

    Raises:
        PlanError: it is not.
    """
    expected = float(scheduler.timesteps[first])
    if getattr(timestep, "ndim", 0) and timestep.numel() != 1:
        return  # a timestep per row
    if float(timestep) == expected:
        return
    taken = [number for number, each in enumerate(timesteps_of(scheduler)) if each == float(timestep)]
    left = len(_taken(scheduler)) - taken[0] if taken else None
    raise PlanError(
        f"the pipeline begins at timestep {float(timestep):g}, not at {expected:g}, where the share plan does: an "
        f"image-to-image strength below 1 skips steps"
        + (
            ""
            if left is None
            else f", and leaves {left} calls of {type(scheduler).__name__}; plan {left} steps"
        )
    )


# -- predictions -----------------------------------------------------------------------------------


def prediction_type(scheduler: Any) -> str:
    """What the denoiser predicts: "epsilon", "v_prediction", "sample", "flow", or a name that only diffusers knows."""
    kind = str(getattr(scheduler.config, "prediction_type", "flow_prediction"))
    return "flow" if kind == "flow_prediction" else kind


def noise_in(sample: Tensor, prediction: Tensor, alpha: float, sigma: float, kind: str) -> Tensor:
    """The noise e that a denoiser's prediction sees in a state alpha x0 + sigma e; all shapes alike.

    Also for states that are not variance preserving (alpha 1): v-predicting models get them divided by
    sqrt(alpha^2 + sigma^2).

    Args:
        kind: the prediction's (`prediction_type`).
    """
    if kind == "epsilon":
        return prediction
    if kind == "sample":
        return (sample - alpha * prediction) / sigma
    if kind == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return (sigma / norm) * (sample / norm) + (alpha / norm) * prediction
    return sample + alpha * prediction  # flow: v = e - x0, x = (1 - s) x0 + s e


def clean_per_prediction(alpha: float, sigma: float, kind: str) -> float:
    """How far the predicted clean latents x0 move, up to sign, when the denoiser's prediction moves by 1.

    In a state alpha x0 + sigma e that is held fixed the one is linear in the other (`noise_in`).

    Args:
        kind: the prediction's (`prediction_type`).

    Raises:
        UnsupportedPipelineError: a kind that is not known.
    """
    if kind == "epsilon":
        return sigma / alpha
    if kind == "sample":
        return 1.0
    if kind == "v_prediction":
        return sigma / math.hypot(alpha, sigma)
    if kind == "flow":
        return sigma
    raise UnsupportedPipelineError(
        f"the scheduler's prediction_type {kind!r} is not known; known are epsilon, sample, v_prediction and flow"
    )


# -- noise levels ----------------------------------------------------------------------------------

Levels = Callable[[Any, int], tuple[float, float, float, float]]
"""(scheduler, number of the timestep) to (alpha, sigma) of the state that its call starts from, and of the one it
leads to."""


def _sigma_pair(scheduler: Any, call: int) -> tuple[float, float]:
    return float(scheduler.sigmas[call]), float(scheduler.sigmas[call + 1])


def _flow(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """x = (1 - s) x0 + s e."""
    sigma, following = _sigma_pair(scheduler, call)
    return 1.0 - sigma, sigma, 1.0 - following, following


def _exploding(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """x = x0 + s e: the state that Euler's and Heun's step is given."""
    sigma, following = _sigma_pair(scheduler, call)
    return 1.0, sigma, 1.0, following


def _preserving(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """x = (x0 + s e) / sqrt(1 + s^2), or flow if so configured."""
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return _flow(scheduler, call)
    sigma, following = _sigma_pair(scheduler, call)
    norm, following_norm = (1 + sigma**2) ** 0.5, (1 + following**2) ** 0.5
    return 1.0 / norm, sigma / norm, 1.0 / following_norm, following / following_norm


def _cumulative(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """DDIM: from the products of alphas at this call's timestep and the next one's."""
    timesteps = scheduler.timesteps
    product = float(scheduler.alphas_cumprod[int(timesteps[call])])
    last = call + 1 == len(timesteps)
    following = float(
        scheduler.final_alpha_cumprod if last else scheduler.alphas_cumprod[int(timesteps[call + 1])]
    )
    return product**0.5, (1 - product) ** 0.5, following**0.5, (1 - following) ** 0.5


NOISE_LEVELS: dict[str, Levels] = {
    "DDIMScheduler": _cumulative,
    "DPMSolverMultistepScheduler": _preserving,
    "EulerAncestralDiscreteScheduler": _exploding,
    "EulerDiscreteScheduler": _exploding,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "HeunDiscreteScheduler": _exploding,
    "UniPCMultistepScheduler": _preserving,
}


def known_levels(scheduler: Any) -> Levels | None:
    """The table's entry for a scheduler's class or one of its base classes; None where there is none."""
    return next(
        (NOISE_LEVELS[c.__name__] for c in type(scheduler).__mro__ if c.__name__ in NOISE_LEVELS), None
    )


def noise_levels_of(scheduler: Any) -> Levels:
    """`known_levels`, where noise may be drawn anew on the way.

    Raises:
        UnsupportedPipelineError: none is known, or the solver carries noise predictions over from earlier
            steps, which fresh noise would contradict.
    """
    config = scheduler.config
    remembers_noise = (
        getattr(config, "algorithm_type", None) in ("dpmsolver", "sde-dpmsolver")
        or getattr(config, "predict_x0", True) is False
    )
    levels = known_levels(scheduler)
    if levels is not None and not remembers_noise:
        return levels
    why = (
        "extrapolates earlier noise predictions"
        if remembers_noise
        else "is not in sagediff.denoiser.scheduler.NOISE_LEVELS"
    )
    raise UnsupportedPipelineError(
        f"fresh noise at the branch point does not work with {type(scheduler).__name__}, which {why}; set "
        f"fresh_noise to 0, or take one of {', '.join(sorted(NOISE_LEVELS))} (DPM-Solver as dpmsolver++, "
        f"UniPC with predict_x0)"
    )


# Their noise comes from a Brownian tree with one seed for a whole batch, drawn from torch's own generator or set once
_ONE_SEED_FOR_ALL = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")


def check_noise_source(scheduler: Any) -> None:
    """A solver's noise must come from generators that it is handed.

    Raises:
        UnsupportedPipelineError: it does not, so that no prompt's seed would decide its image.
    """
    for name in _ONE_SEED_FOR_ALL:
        if _is_a(scheduler, name):
            raise UnsupportedPipelineError(
                f"{type(scheduler).__name__} draws one noise for a whole batch, which no prompt's seed decides: the "
                f"same seed would give other images; take DPMSolverMultistepScheduler with "
                f"algorithm_type='sde-dpmsolver++' (dpm++-sde), which draws each prompt's own"
            )


def corrects_last_state(scheduler: Any) -> bool:
    """Whether the solver starts its next step anew from the state before this one, its `last_sample`."""
    return _is_a(scheduler, "UniPCMultistepScheduler")
