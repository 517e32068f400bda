"""The forward process q(z, t) of a pipeline's scheduler: noise levels, states, targets. Pure tensors.

Time is told as u in [0, 1): the part of the sampling steps that lies behind. A branch point at share ratio
beta is u = beta; which timestep that is depends on the scheduler's spacing, so it is read off its own steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sagediff.denoiser.scheduler import prediction_type
from sagediff.errors import UnsupportedPipelineError

Conditions: TypeAlias = Mapping[str, Tensor]
Predict: TypeAlias = Callable[[Tensor, Tensor, Conditions], Tensor]
"""(states (N, ...), timesteps (N,), conditions, each (N, ...)) -> prediction (N, ...)."""

GRID = 250  # steps of the grid that u is read off; between them it is interpolated


@dataclass(frozen=True)
class ForwardProcess:
    """q(z, t): x = alpha z + sigma e.

    Attributes:
        kind: what the denoiser predicts: "epsilon", "v_prediction", "sample" or "flow".
        grid: (G,) timesteps in the order of sampling, from noise to image; of a flow they are T sigma, and need not be
            whole numbers.
        alphas_cumprod: (T,) of variance preserving processes; None for flow, where alpha = 1 - t / T.
        num_train_timesteps: T.
        told_whole: whether the scheduler tells the denoiser a flow's timesteps cut to whole numbers, as solvers for
            diffusion that know flow do.
        exactly: whether the timesteps of the grid are all there are.
        sigmas: (G,) of a flow, the noise levels at the grid where they are not t / T: some pipelines shift them alone
            (CogView4).
    """

    kind: str
    grid: Tensor
    alphas_cumprod: Tensor | None
    num_train_timesteps: int
    told_whole: bool = False
    exactly: bool = False
    sigmas: Tensor | None = None

    @classmethod
    def of(cls, scheduler: Any, image_tokens: int | None = None) -> ForwardProcess:
        """The process that a scheduler's model was trained on.

        Args:
            image_tokens: number of latent tokens, which flow schedulers with dynamic shifting (FLUX) ask for.

        Raises:
            UnsupportedPipelineError: a prediction that the objective does not know.
        """
        scheduler = copy.deepcopy(scheduler)
        config = scheduler.config
        options: dict[str, Any] = {}
        if config.get("use_dynamic_shifting", False) and image_tokens is not None:
            # the defaults are those of the pipelines, for configurations that leave these out
            least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
            options["mu"] = low + (high - low) / (most - least) * (image_tokens - least)
        scheduler.set_timesteps(GRID, **options)
        return cls.as_set(scheduler)

    @classmethod
    def as_set(cls, scheduler: Any, exactly: bool = False) -> ForwardProcess:
        """The process at the timesteps that are set, which a pipeline sets in a way of its own.

        Args:
            exactly: only these timesteps exist, as for models that were distilled to few steps; otherwise what lies
                between them is interpolated.

        Raises:
            UnsupportedPipelineError: a prediction that the objective does not know.
        """
        config = scheduler.config
        grid = torch.as_tensor(scheduler.timesteps).float().cpu()
        cumulative = getattr(scheduler, "alphas_cumprod", None)
        kind, count = prediction_type(scheduler), config.num_train_timesteps
        told_whole = kind == "flow" and bool(config.get("use_flow_sigmas", False))
        if told_whole:
            # a solver for diffusion that is configured for flow: its alphas_cumprod are not looked at
            grid, cumulative = torch.as_tensor(scheduler.sigmas[: len(grid)]).float().cpu() * count, None
        known = kind in ("epsilon", "v_prediction", "sample", "flow")
        fits = (kind == "flow") == (cumulative is None) and told_whole == bool(
            config.get("use_flow_sigmas", False)
        )
        learned = str(config.get("variance_type", "")).startswith("learned")
        inverted = bool(config.get("invert_sigmas", False))
        if not known or not fits or inverted or (kind == "flow" and not bool((grid <= count).all())):
            raise UnsupportedPipelineError(
                f"training knows no prediction type {kind!r} with {type(scheduler).__name__} as it is configured"
            )
        if learned:
            raise UnsupportedPipelineError(
                f"{type(scheduler).__name__} takes the variance of its steps from the denoiser (variance_type "
                f"{config.variance_type!r}), which is not trained and would drift; take a solver that does not, such "
                "as DDIM or DPM-Solver++"
            )
        falls = torch.cat([torch.tensor([True]), grid[1:] < grid[:-1]])  # Heun's method tells each twice
        cumulative = None if cumulative is None else torch.as_tensor(cumulative).float()
        sigmas = None
        if kind == "flow":
            levels = torch.as_tensor(scheduler.sigmas[: len(grid)]).float().cpu()
            if not torch.allclose(levels, grid / count, rtol=0, atol=1e-3):
                sigmas = levels[falls]
        return cls(kind, grid[falls], cumulative, count, told_whole, exactly, sigmas)

    def timesteps(self, u: Tensor) -> Tensor:
        """(N,) parts of the steps in [0, 1) -> (N,) timesteps, whole numbers unless the process is a flow."""
        place = u.clamp(0, 1).float() * len(self.grid)
        left = place.long().clamp(max=len(self.grid) - 1)
        following = torch.cat([self.grid, self.grid.new_zeros(1)]).to(u.device)
        between = torch.zeros_like(place) if self.exactly else (place - left).clamp(0, 1)
        t = torch.lerp(following[left], following[left + 1], between)
        return t if self.alphas_cumprod is None else t.round().long().clamp(max=self.num_train_timesteps - 1)

    def told(self, timesteps: Tensor) -> Tensor:
        """What the scheduler hands the denoiser at timesteps (N,), shape (N,)."""
        return timesteps.long() if self.told_whole else timesteps

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps (N,), each (N,)."""
        if self.sigmas is not None:
            sigma = self._sigmas_at(timesteps)
            return 1 - sigma, sigma
        if self.alphas_cumprod is None:
            sigma = timesteps.float() / self.num_train_timesteps
            return 1 - sigma, sigma
        product = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return product.sqrt(), (1 - product).sqrt()

    def _sigmas_at(self, timesteps: Tensor) -> Tensor:
        """(N,), between the grid's."""
        assert self.sigmas is not None
        zero = self.grid.new_zeros(1)
        times, sigmas = (
            torch.cat([rows, zero]).flip(0).to(timesteps.device) for rows in (self.grid, self.sigmas)
        )
        right = torch.searchsorted(times, timesteps.float().contiguous()).clamp(1, len(times) - 1)
        low, high = times[right - 1], times[right]
        part = ((timesteps.float() - low) / (high - low)).clamp(0, 1)
        return torch.lerp(sigmas[right - 1], sigmas[right], part)

    def state(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha z + sigma e, shape of `clean` (N, ...)."""
        alpha, sigma = (rows_of(level, clean) for level in self.levels(timesteps))
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict at `state(clean, noise, timesteps)`."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return clean
        if self.kind == "flow":
            return noise - clean
        alpha, sigma = (rows_of(level, clean) for level in self.levels(timesteps))
        return alpha * noise - sigma * clean

    def split(self, predicted: Tensor, state: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """A prediction at a state, told as (clean latents, noise), each (N, ...); the inverse of `target`."""
        alpha, sigma = (rows_of(level, state) for level in self.levels(timesteps))
        if self.kind == "epsilon":
            return (state - sigma * predicted) / alpha, predicted
        if self.kind == "sample":
            return predicted, (state - alpha * predicted) / sigma
        if self.kind == "flow":  # alpha + sigma = 1
            return state - sigma * predicted, state + alpha * predicted
        return alpha * state - sigma * predicted, sigma * state + alpha * predicted

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """(N,) weights of the squared error: min-SNR-gamma (arXiv 2303.09556, eq. 7), for this prediction.

        Raises:
            UnsupportedPipelineError: the process is a flow, for which the weighting is not defined.
        """
        if self.kind == "flow":
            raise UnsupportedPipelineError("min-SNR weighting is not defined for flow matching; leave it out")
        alpha, sigma = self.levels(timesteps)
        snr = (alpha / sigma).square()
        capped = snr.clamp(max=gamma)
        return {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[self.kind]

    def noise_seen(self, clean: Tensor, state: Tensor, branch: Tensor) -> Tensor:
        """The noise that member n sees in the group's state at the branch timestep: e_n = (x - a z_n) / b.

        For x = a z-bar + b e that is e + (a / b) (z-bar - z_n)   (METHOD "hand-over").

        Args:
            clean: (N, ...) z_n.
            state: (N, ...) x, the group's state, of each member.
            branch: (N,) timesteps.
        """
        alpha, sigma = (rows_of(level, clean) for level in self.levels(branch))
        return (state - alpha * clean) / sigma


def rows_of(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ...) so that it multiplies rows of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
