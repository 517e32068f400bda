"""The shared phase as the model itself would sample it: where hand-over states really come from."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sagediff.training.forward_process import Conditions, ForwardProcess, Predict


@torch.no_grad()
def roll_out(
    predict: Predict,
    process: ForwardProcess,
    conditions: Conditions,
    noise: Tensor,
    branch: Tensor,
    steps: int,
) -> Tensor:
    """The state of each group at its branch point, (G, ...), after a few deterministic steps.

    From noise at u = 0, `steps` equal parts of [0, u*] are taken as DDIM takes them (arXiv 2010.02502, eq. 12
    with sigma 0), without guidance. The steps are large because the model's estimate of the clean latent moves
    little while a group shares: it is the mean of what the members will be.

    Args:
        predict: the model being trained; no gradient is kept.
        conditions: c-bar, each (G, ...).
        noise: (G, ...) e.
        branch: (G,) u* in (0, 1).
        steps: at least 1.
    """
    times = [process.timesteps(branch * k / steps) for k in range(steps + 1)]
    state = process.state(torch.zeros_like(noise), noise, times[0])
    for now, then in pairwise(times):
        clean, direction = process.split(predict(state, now, conditions).float(), state, now)
        state = process.state(clean, direction, then)
    return state
