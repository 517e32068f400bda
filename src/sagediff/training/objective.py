"""The two objectives, as equations on tensors: SAGE (both phases of shared sampling) and the standard one.

They know neither files nor optimizers; `predict` is the model being trained, `teacher` the frozen one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sagediff.training.forward_process import Conditions, ForwardProcess, Predict, rows_of
from sagediff.training.rollout import roll_out
from sagediff.training.train_config import SageWeights

ROLLOUT_STEPS = 3


@dataclass(frozen=True)
class GroupBatch:
    """Examples of some whole groups.

    Attributes:
        latents: (N, ...) clean latents z_n.
        conditions: each (N, ...): c_n.
        group_conditions: each (G, ...): c-bar.
        empty: each (1, ...): the empty prompt's, for guidance; not looked at where nothing is dropped.
        dropped: (N,) examples whose branch phase takes the empty prompt instead.
        node: (N,) number of each example's group, 0..G-1.
    """

    latents: Tensor
    conditions: Conditions
    group_conditions: Conditions
    empty: Conditions
    dropped: Tensor
    node: Tensor

    @property
    def num_groups(self) -> int:
        return int(self.node.max()) + 1

    def guided_conditions(self) -> dict[str, Tensor]:
        """Each (N, ...): c_n, or the empty prompt's where dropped."""
        if not bool(self.dropped.any()):
            return dict(self.conditions)
        return {
            name: torch.where(rows_of(self.dropped, rows).bool(), self.empty[name], rows)
            for name, rows in self.conditions.items()
        }


def group_mean(rows: Tensor, node: Tensor, count: int) -> Tensor:
    """(N, ...) -> (G, ...): the mean of each group's rows."""
    sums = rows.new_zeros(count, *rows.shape[1:]).index_add_(0, node, rows)
    sizes = torch.bincount(node, minlength=count).to(rows.dtype)
    return sums / sizes.view(-1, *[1] * (rows.ndim - 1))


def sage_terms(
    predict: Predict,
    teacher: Predict,
    process: ForwardProcess,
    batch: GroupBatch,
    weights: SageWeights,
    branch_range: tuple[float, float],
    generator: torch.Generator,
    min_snr_gamma: float | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of one step; their sum is minimised.

    Each group gets a branch point of its own, u* drawn evenly from `branch_range` (a share ratio); then
    - shared phase, u in [0, u*): the state is q(z-bar, t) on c-bar (one row per group);
    - branch phase, u in [u*, 1): for each member either the usual state, or one that the group's trajectory
      leads to (one row per member).
    """
    z, node, count = batch.latents, batch.node, batch.num_groups
    device = z.device
    sizes = torch.bincount(node, minlength=count)
    mean = group_mean(z, node, count)

    def uniform(size: int) -> Tensor:
        return torch.rand(size, generator=generator, device=device)

    low, high = branch_range
    branch = low + (high - low) * uniform(count)  # (G,) u*
    # shared phase
    shared_t = process.timesteps(branch * uniform(count))
    shared_noise = torch.randn(mean.shape, generator=generator, device=device)
    shared_state = process.state(mean, shared_noise, shared_t)
    # branch phase
    u = branch[node] + (1 - branch[node]) * uniform(len(z))
    t = process.timesteps(u)
    group_noise = torch.randn(mean.shape, generator=generator, device=device)
    own_noise = torch.randn(z.shape, generator=generator, device=device)
    handed = (uniform(len(z)) < weights.handover_rate) & (sizes[node] > 1) & bool(weights.handover > 0)
    branch_t = process.timesteps(branch)  # (G,)
    handed_over = process.state(mean, group_noise, branch_t)  # (G, ...)
    rolled = (uniform(count) < weights.rollout_rate) & (torch.bincount(node[handed], minlength=count) > 0)
    if bool(rolled.any()):
        handed_over[rolled] = roll_out(
            predict, process, {k: rows[rolled] for k, rows in batch.group_conditions.items()},
            group_noise[rolled], branch[rolled], ROLLOUT_STEPS,
        )  # fmt: skip
    taken_over = process.noise_seen(z, handed_over[node], branch_t[node])
    noise = torch.where(handed.view(-1, *[1] * (z.ndim - 1)), taken_over, own_noise)

    guided = batch.guided_conditions()
    trains_shared = bool(weights.shared or weights.soft)
    states, times, given = process.state(z, noise, t), t, guided
    if trains_shared:
        states, times = torch.cat([shared_state, states]), torch.cat([shared_t, t])
        given = {k: torch.cat([rows, guided[k]]) for k, rows in batch.group_conditions.items()}
    predicted = predict(states, times, given).float()
    in_shared, in_branch = predicted[:count], predicted[count if trains_shared else 0 :]

    terms: dict[str, Tensor] = {}
    if weights.shared:
        target = process.target(mean, shared_noise, shared_t)
        error = squared_error(in_shared, target, process, shared_t, min_snr_gamma)
        terms["shared"] = weights.shared * error.mean()
    if weights.soft:
        with torch.no_grad():
            soft = group_mean(
                teacher(shared_state[node], shared_t[node], batch.conditions).float(), node, count
            )
        error = squared_error(in_shared, soft, process, shared_t, min_snr_gamma)
        terms["soft"] = weights.soft * error.mean()
    error = squared_error(in_branch, process.target(z, noise, t), process, t, min_snr_gamma)  # (N,)
    if weights.branch:
        terms["branch"] = weights.branch * (error * ~handed).sum() / len(z)
    if weights.handover:
        terms["handover"] = weights.handover * (error * handed).sum() / len(z)
    return terms


def standard_terms(
    predict: Predict,
    process: ForwardProcess,
    batch: GroupBatch,
    generator: torch.Generator,
    min_snr_gamma: float | None = None,
) -> dict[str, Tensor]:
    """The usual denoising objective on the same examples, over all steps: the fine-tuning baseline."""
    z = batch.latents
    # stratified: one draw from each of N equal parts, so that the loss varies less from step to step
    rows = torch.arange(len(z), device=z.device)
    u = (rows + torch.rand(len(z), generator=generator, device=z.device)) / len(z)
    t = process.timesteps(u)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    predicted = predict(process.state(z, noise, t), t, batch.guided_conditions()).float()
    error = squared_error(predicted, process.target(z, noise, t), process, t, min_snr_gamma)
    return {"standard": error.mean()}


def squared_error(
    predicted: Tensor, target: Tensor, process: ForwardProcess, timesteps: Tensor, min_snr_gamma: float | None
) -> Tensor:
    """(N, ...) twice -> (N,) mean squared error of each row, weighted by its timestep if there is a gamma."""
    error = (predicted - target.float()).square().flatten(1).mean(1)
    return error if min_snr_gamma is None else error * process.min_snr_weights(timesteps, min_snr_gamma)
