"""The equations of training: the forward process, the hand-over identity, and what each term asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny import SCHEDULERS
from torch import Tensor

from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.training.forward_process import ForwardProcess, rows_of
from sagediff.training.objective import (
    ROLLOUT_STEPS,
    GroupBatch,
    SageWeights,
    group_mean,
    sage_terms,
    standard_terms,
)
from sagediff.training.rollout import roll_out

KINDS = ["epsilon", "v_prediction", "sample", "flow"]


def process_of(kind: str) -> ForwardProcess:
    scheduler = SCHEDULERS["flow" if kind == "flow" else "ddim"]()
    if kind != "flow":
        scheduler.register_to_config(prediction_type=kind)
    return ForwardProcess.of(scheduler)


def a_batch(sizes: list[int] = [3, 1, 2]) -> GroupBatch:  # noqa: B006
    generator = torch.Generator().manual_seed(0)
    n = sum(sizes)
    node = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
    conditions = torch.randn(n, 5, generator=generator)
    return GroupBatch(
        latents=torch.randn(n, 2, 3, 3, generator=generator),
        conditions={"c": conditions},
        group_conditions={"c": group_mean(conditions, node, len(sizes))},
        empty={"c": torch.zeros(1, 5)},
        dropped=torch.zeros(n, dtype=torch.bool),
        node=node,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_state_and_target_give_back_image_and_noise(kind: str) -> None:
    process = process_of(kind)
    z, e = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    t = process.timesteps(torch.tensor([0.05, 0.3, 0.6, 0.9]))
    alpha, sigma = (rows_of(level, z) for level in process.levels(t))
    x, target = process.state(z, e, t), process.target(z, e, t)
    noise = {
        "epsilon": lambda: target,
        "v_prediction": lambda: sigma * x + alpha * target,
        "sample": lambda: (x - alpha * target) / sigma,
        "flow": lambda: x + alpha * target,
    }[kind]()
    torch.testing.assert_close(noise, e, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((x - sigma * noise) / alpha, z, rtol=1e-2, atol=1e-2)
    clean, direction = process.split(target, x, t)
    torch.testing.assert_close(clean, z, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(direction, e, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hand_over_leads_the_groups_state_to_the_member(kind: str) -> None:
    """a z-bar + b e = a z_n + b e_n at the branch point."""
    process = process_of(kind)
    z, mean, e = (torch.randn(3, 2, 3, 3, dtype=torch.float64) for _ in range(3))
    branch = process.timesteps(torch.tensor([0.3, 0.5, 0.7]))
    shared = process.state(mean, e, branch)
    own = process.noise_seen(z, shared, branch)
    torch.testing.assert_close(process.state(z, own, branch), shared)
    alpha, sigma = (rows_of(level, z) for level in process.levels(branch))
    torch.testing.assert_close(own, e + alpha / sigma * (mean - z))


FLOW = ["flow", "dpmpp_flow", "unipc_flow"]


@pytest.mark.parametrize("name", ["dpmpp_flow", "unipc_flow"])
@pytest.mark.parametrize("steps", [5, 20, 30])
def test_a_flows_states_are_those_that_its_solver_meets(name: str, steps: int) -> None:
    """At u = k / n the level, and the timestep told to the denoiser, are those of sampling's step k of n."""
    scheduler = SCHEDULERS[name]()
    process = ForwardProcess.of(scheduler)
    assert process.kind == "flow" and process.alphas_cumprod is None
    scheduler.set_timesteps(steps)
    t = process.timesteps(torch.arange(steps) / steps)
    alpha, sigma = process.levels(t)
    torch.testing.assert_close(sigma, scheduler.sigmas[:-1], rtol=0, atol=2e-5)
    torch.testing.assert_close(alpha, 1 - sigma)
    told = process.told(t)
    assert not told.is_floating_point() and (told - scheduler.timesteps).abs().max() <= 1
    assert (told == scheduler.timesteps).float().mean() > 0.8  # but where rounding decides
    if name == "dpmpp_flow":
        z, e = torch.randn(steps, 2, 3, 3), torch.randn(steps, 2, 3, 3)
        torch.testing.assert_close(
            process.state(z, e, t), scheduler.add_noise(z, e, scheduler.timesteps), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("name", FLOW)
def test_a_perfect_denoiser_of_a_flow_is_led_to_the_image(name: str) -> None:
    """What `target` asks for is what the solver takes: answered at every step, it ends at z."""
    scheduler = SCHEDULERS[name]()
    process = ForwardProcess.of(scheduler)
    z = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    state = noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(12)
    for timestep in scheduler.timesteps:
        answer = process.target(z, noise, timestep.expand(2))
        state = scheduler.step(answer, timestep, state).prev_sample
    # solvers for flow begin a thousandth before the pure noise that they are given
    torch.testing.assert_close(state, z, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "flow_prediction"},  # the levels of diffusion, the prediction of a flow
        {"prediction_type": "epsilon", "use_flow_sigmas": True},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_karras_sigmas": True},
    ],
)
def test_a_solver_whose_levels_are_not_those_of_its_prediction_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedPipelineError, match="with DPMSolverMultistepScheduler"):
        ForwardProcess.of(DPMSolverMultistepScheduler(**options))


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler", "heun", "flow"])
def test_time_is_read_off_the_schedulers_own_steps(name: str) -> None:
    """u = ratio is the timestep at which sampling with that share ratio parts."""
    scheduler = SCHEDULERS[name]()
    process = ForwardProcess.of(scheduler)
    u = torch.linspace(0, 0.999, 50)
    t = process.timesteps(u).float()
    assert (t[1:] <= t[:-1]).all() and t[0] == process.grid[0].round() and t[-1] >= 0
    scheduler.set_timesteps(50)
    own = torch.as_tensor(scheduler.timesteps).float().unique().flip(0)[:35]
    spacing = float(process.num_train_timesteps) / 50
    assert (process.timesteps(torch.arange(35) / 50).float() - own).abs().max() <= spacing


def test_dynamic_shifting_needs_the_number_of_tokens() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    few, many = (ForwardProcess.of(scheduler, tokens).grid for tokens in (256, 4096))
    assert (many[1:] > few[1:]).all()  # larger images spend more of their steps at high noise


class Oracle:
    """Predicts the target exactly, for states whose image and noise it was told; asked in the order of rows."""

    def __init__(self, process: ForwardProcess, batch: GroupBatch) -> None:
        self.process, self.batch, self.asked = process, batch, 0

    def __call__(self, states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        self.asked += len(states)
        clean = torch.cat(
            [group_mean(self.batch.latents, self.batch.node, self.batch.num_groups), self.batch.latents]
        )
        clean = clean[-len(states) :] if len(states) <= len(clean) else clean
        alpha, sigma = (rows_of(level, states) for level in self.process.levels(timesteps))
        return self.process.target(clean, (states - alpha * clean) / sigma, timesteps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_model_has_no_loss(kind: str) -> None:
    """It leads shared states to the group's mean and every other state, handed over or not, to the member."""
    process, batch = process_of(kind), a_batch()
    oracle = Oracle(process, batch)
    weights = SageWeights(shared=0.3, rollout_rate=0.0)
    terms = sage_terms(oracle, oracle, process, batch, weights, (0.3, 0.6), torch.Generator().manual_seed(1))
    assert set(terms) == {"shared", "branch", "handover"}
    assert oracle.asked == 3 + 6  # a row per group, a row per member
    assert all(float(term) < 1e-4 for term in terms.values())
    assert float(standard_terms(oracle, process, batch, torch.Generator().manual_seed(1))["standard"]) < 1e-4


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_the_mean_rolls_out_to_the_state_made_from_it(kind: str, steps: int) -> None:
    process, mean, e = process_of(kind), torch.randn(3, 2, 3, 3), torch.randn(3, 2, 3, 3)

    def model(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        alpha, sigma = (rows_of(level, states) for level in process.levels(timesteps))
        return process.target(mean, (states - alpha * mean) / sigma, timesteps)

    branch = torch.tensor([0.2, 0.4, 0.6])
    state = roll_out(model, process, {}, e, branch, steps)
    # sampling starts from noise alone, where the process has a little of the image left
    start = process.timesteps(torch.zeros(3))
    seen = process.noise_seen(mean, process.state(torch.zeros_like(e), e, start), start)
    expected = process.state(mean, seen, process.timesteps(branch))
    torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-3)


def test_a_rolled_out_state_is_the_models_own_and_leads_to_the_member() -> None:
    """The branch phase is asked at states on the way from where the model's shared phase ends to z_n."""
    process, batch, asked = process_of("flow"), a_batch([2, 3]), []

    def model(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        asked.append((states, timesteps, conditions["c"]))
        return states * conditions["c"].mean(1).view(-1, 1, 1, 1)

    weights = SageWeights(shared=0.3, handover_rate=1.0, rollout_rate=1.0)
    terms = sage_terms(model, model, process, batch, weights, (0.4, 0.4), torch.Generator().manual_seed(5))
    *rollout, trained = asked
    assert len(rollout) == ROLLOUT_STEPS and float(terms["branch"]) == 0
    for states, timesteps, conditions in rollout:
        assert len(states) == 2 and (timesteps >= process.timesteps(torch.tensor([0.4]))).all()
        assert torch.equal(conditions, batch.group_conditions["c"])
    # where the shared phase ends, by the same rule, from the last state that was asked at
    last, now, _ = rollout[-1]
    then = process.timesteps(torch.full((2,), 0.4))
    predicted = last * batch.group_conditions["c"].mean(1).view(-1, 1, 1, 1)
    end = process.state(*process.split(predicted, last, now), then)
    states, timesteps, _ = (part[2:] for part in trained)
    noise = process.noise_seen(batch.latents, end[batch.node], then[batch.node])
    torch.testing.assert_close(states, process.state(batch.latents, noise, timesteps))


def test_the_soft_target_is_the_mean_over_the_members() -> None:
    process, batch = process_of("epsilon"), a_batch()
    answers = batch.conditions["c"].sum(1).view(-1, 1, 1, 1)  # the teacher answers by the member's condition

    def teacher(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        for group in range(3):  # all members of a group are asked at its one state
            rows = states[batch.node == group]
            assert torch.equal(rows, rows[:1].expand_as(rows))
        return answers.expand_as(states)

    def student(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        out = torch.zeros_like(states)
        out[:3] = group_mean(answers, batch.node, 3)
        return out

    only_soft = SageWeights(soft=0.3, branch=0.0, handover=0.0)
    generator = torch.Generator().manual_seed(2)
    terms = sage_terms(student, teacher, process, batch, only_soft, (0.3, 0.6), generator)
    assert set(terms) == {"soft"} and float(terms["soft"]) < 1e-10


def test_each_weight_scales_its_own_term() -> None:
    process, batch = process_of("v_prediction"), a_batch()

    def model(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        return 0.1 * states

    every = {"shared": 0.3, "soft": 0.2, "branch": 1.0, "handover": 0.7}

    def terms(**weights: float) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        return sage_terms(model, model, process, batch, SageWeights(**every | weights), (0.3, 0.6), generator)

    plain = terms()
    for name in every:
        changed = terms(**{name: 3 * every[name]})
        assert changed.keys() == plain.keys()
        for other in plain:
            factor = 3.0 if other == name else 1.0
            torch.testing.assert_close(changed[other], factor * plain[other])
        assert name not in terms(**{name: 0.0})


def test_without_targets_of_the_shared_phase_only_members_run() -> None:
    """The branch phase sees the same states and noise whether or not the shared phase is trained."""
    process, batch = process_of("epsilon"), a_batch()
    rows: list[int] = []

    def model(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        rows.append(len(states))
        assert len(timesteps) == len(states) == len(conditions["c"])
        return 0.1 * states

    def terms(weights: SageWeights) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        return sage_terms(model, model, process, batch, weights, (0.3, 0.6), generator)

    without = terms(SageWeights(rollout_rate=0.0))
    with_target = terms(SageWeights(shared=0.3, rollout_rate=0.0))
    assert rows == [len(batch.latents), len(batch.latents) + batch.num_groups]
    for name in ("branch", "handover"):
        torch.testing.assert_close(without[name], with_target[name])


def test_groups_of_one_are_never_handed_over_and_dropped_ones_are_empty() -> None:
    process, batch = process_of("epsilon"), a_batch([1, 1, 1])
    batch = GroupBatch(**{**vars(batch), "dropped": torch.tensor([True, False, True])})
    seen: dict[str, Tensor] = {}

    def model(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
        seen.setdefault("c", conditions["c"])
        return torch.zeros_like(states)

    weights = SageWeights(shared=0.3, handover_rate=1.0)
    terms = sage_terms(model, model, process, batch, weights, (0.3, 0.6), torch.Generator().manual_seed(4))
    assert float(terms["handover"]) == 0.0
    assert (seen["c"][:3] == batch.group_conditions["c"]).all()  # the shared phase is never dropped
    assert (seen["c"][[3, 5]] == 0).all() and (seen["c"][4] == batch.conditions["c"][1]).all()


def test_min_snr_weights() -> None:
    for kind, formula in (
        ("epsilon", lambda snr: min(snr, 5.0) / snr),
        ("v_prediction", lambda snr: min(snr, 5.0) / (snr + 1)),
        ("sample", lambda snr: min(snr, 5.0)),
    ):
        process = process_of(kind)
        t = process.timesteps(torch.tensor([0.1, 0.5, 0.95]))
        alpha, sigma = process.levels(t)
        expected = torch.tensor([formula(float(s)) for s in (alpha / sigma) ** 2])
        torch.testing.assert_close(process.min_snr_weights(t, 5.0), expected)
    with pytest.raises(UnsupportedPipelineError, match="flow"):
        process_of("flow").min_snr_weights(torch.tensor([0.5]), 5.0)


@pytest.mark.parametrize("weights", [{"soft": -1.0}, {"handover_rate": 1.5}, {"shared": float("nan")}])
def test_weights_out_of_range(weights: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SageWeights(**weights)
