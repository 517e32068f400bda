"""Rows of nodes: right whatever was gathered before, merged once while conditions stay, not copied without need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sagediff.denoiser.condition import mean_condition
from sagediff.denoiser.lookup import FAMILIES
from sagediff.sampling.gathering import Gathering

UNET = FAMILIES["UNet2DConditionModel"]
SOURCES = ((0,), (1, 2), (3, 4, 5))


class Counted:
    """The mean, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        self.calls += 1
        return mean_condition(*args)


def call(seed: int = 0, rows: int = 6) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(rows, 2, 3, 3, generator=noise),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(rows, 4, 5, generator=noise),
    }


def expected(tensors: Mapping[str, Tensor], sources: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
    texts = tensors["encoder_hidden_states"]
    return {
        "sample": torch.stack([tensors["sample"][members[0]] for members in sources]),
        "encoder_hidden_states": torch.stack([texts[list(members)].mean(0) for members in sources]),
    }


def assert_rows(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        torch.testing.assert_close(found[name], rows)


def test_conditions_that_stay_are_merged_once() -> None:
    counted, tensors = Counted(), call()
    gathering = Gathering(UNET, counted)
    for step in range(3):
        tensors["sample"] = call(step)["sample"]  # another state at every step
        assert_rows(gathering.rows(tensors, SOURCES), expected(tensors, SOURCES))
    assert counted.calls == 2


@pytest.mark.parametrize("change", ["written to", "written to unseen", "another tensor", "another size"])
def test_conditions_that_change_are_merged_anew(change: str) -> None:
    gathering, tensors = Gathering(UNET, mean_condition), call()
    gathering.rows(tensors, SOURCES)
    if change == "written to":
        tensors["encoder_hidden_states"].mul_(2)
    elif change == "written to unseen":
        tensors["encoder_hidden_states"].data.mul_(2)
    elif change == "another tensor":
        tensors["encoder_hidden_states"] = call(5)["encoder_hidden_states"]
    else:
        tensors = call(5, rows=8)
    assert_rows(gathering.rows(tensors, SOURCES), expected(tensors, SOURCES))


def test_two_calls_a_step_keep_their_own() -> None:
    counted = Counted()
    gathering, conditional, negative = Gathering(UNET, counted), call(0), call(1)
    for _ in range(3):
        assert_rows(gathering.rows(conditional, SOURCES), expected(conditional, SOURCES))
        assert_rows(gathering.rows(negative, SOURCES), expected(negative, SOURCES))
    assert counted.calls == 4


def test_inference_tensors_that_were_written_to_are_merged_anew() -> None:
    counted = Counted()
    gathering = Gathering(UNET, counted)
    with torch.inference_mode():
        tensors = call()
        gathering.rows(tensors, SOURCES)
        tensors["encoder_hidden_states"].mul_(2)
        assert_rows(gathering.rows(tensors, SOURCES), expected(tensors, SOURCES))
    assert counted.calls == 4


def test_neighbouring_single_rows_are_not_copied() -> None:
    tensors = call()
    found = Gathering(UNET, mean_condition).rows(tensors, ((2,), (3,), (4,)))
    for name, rows in found.items():
        assert rows.data_ptr() == tensors[name][2].data_ptr() and torch.equal(rows, tensors[name][2:5])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
def test_any_sources_after_any_others(asked: list[list[int]]) -> None:
    gathering, tensors = Gathering(UNET, mean_condition), call()
    sources = tuple(tuple(members) for members in asked)
    for start in range(len(sources)):
        part = sources[start:]
        assert_rows(gathering.rows(tensors, part), expected(tensors, part))
