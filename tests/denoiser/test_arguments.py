"""What an argument of a denoiser can be: where its rows lie, what it tells of others, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from sagediff.denoiser.condition import mean_condition
from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, declared
from sagediff.denoiser.family import Family
from sagediff.errors import UnsupportedPipelineError
from sagediff.sampling.gathering import Gathering

SOURCES = ((0, 2), (1,))


def family(rows: str = "x t", conditions: str = "c", **more: Any) -> Family:
    return declared(rows, conditions, **GUIDED_IN_ONE_CALL, **more)


def run(declared_as: Family, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the call that is run for a group of the rows 0 and 2, and row 1."""
    tensors = declared_as.tensors(arguments, "Model")
    return declared_as.put(arguments, Gathering(declared_as, mean_condition).rows(tensors, SOURCES))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def x() -> torch.Tensor:
    return noise(1, 2, 2).repeat(3, 1, 1)


# -- where rows lie --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_an_argument_of_one_row_is_left_to_the_model_to_broadcast(rows: int) -> None:
    given = {"x": x(), "t": torch.ones(rows), "c": noise(rows, 4, 5), "m": torch.ones(rows, 4), "k": None}
    found = run(family(masks={"m": "c"}), given)
    assert {len(found[name]) for name in ("t", "c", "m")} == {1 if rows == 1 else 2}
    if rows == 1:
        assert all(found[name] is given[name] for name in ("t", "c", "m"))


def test_rows_on_another_axis() -> None:
    states = noise(4, 3, 2, 5)  # layers, rows, tokens, ...
    found = run(family(axes={"c": 1}), {"x": x(), "c": states})["c"]
    assert found.shape == (4, 2, 2, 5)
    torch.testing.assert_close(found[:, 0], states[:, [0, 2]].mean(1))
    torch.testing.assert_close(found[:, 1], states[:, 1])


def test_tokens_on_another_axis_are_words_by_their_mask() -> None:
    states, mask = noise(3, 4, 2, 5), torch.tensor([[True, False], [True, True], [True, True]])
    found = run(family(masks={"m": "c"}, token_axes={"c": 2}), {"x": x(), "c": states, "m": mask})["c"]
    assert found.shape == (2, 4, 2, 5)
    torch.testing.assert_close(found[0, :, 0], states[[0, 2], :, 0].mean(0))
    torch.testing.assert_close(found[0, :, 1], states[2, :, 1])  # the first one's is padding


def test_several_entries_per_row() -> None:
    states = noise(3, 4, 5).repeat_interleave(2, dim=0)  # two frames each
    declared_as = family(several="c")
    found = run(declared_as, {"x": x(), "c": states})["c"]
    torch.testing.assert_close(found, torch.stack([states[[0, 4]].mean(0)] * 2 + [states[2]] * 2))
    assert len(run(declared_as, {"x": x(), "c": states[:3]})["c"]) == 2
    with pytest.raises(UnsupportedPipelineError, match=r"`c` of shape \(5, 4, 5\).*3 rows"):
        run(declared_as, {"x": x(), "c": states[:5]})


def test_parts_may_stand_in_a_dictionary_and_be_left_out() -> None:
    declared_as = family(conditions="c r", parts=frozenset({"r"}))
    parts = {0: noise(3, 2), 4: noise(3, 2, 1)}
    found = run(declared_as, {"x": x(), "r": parts})["r"]
    assert found.keys() == parts.keys() and found[4].shape == (2, 2, 1)
    found = run(declared_as, {"x": x(), "r": [parts[0], None]})["r"]
    assert found[0].shape == (2, 2) and found[1] is None


# -- what they tell --------------------------------------------------------------------------------


def test_of_lengths_the_largest_wins_and_they_tell_words() -> None:
    states, lengths = noise(3, 2, 5), torch.tensor([1, 2, 2])
    found = run(family(lengths={"n": "c"}), {"x": x(), "c": states, "n": lengths})
    assert found["n"].tolist() == [2, 2]
    torch.testing.assert_close(found["c"][0, 0], states[[0, 2], 0].mean(0))
    torch.testing.assert_close(found["c"][0, 1], states[2, 1])


def test_a_mask_of_several_conditions() -> None:
    declared_as = family(conditions="c d", masks={"m": "c d"}, parts=frozenset({"d"}))
    mask = torch.tensor([[0.0, -1e4], [0.0, 0.0], [0.0, 0.0]])[:, None, None]
    found = run(declared_as, {"x": x(), "c": noise(3, 2, 5), "d": [noise(3, 2, 5)], "m": mask})
    for rows in (found["c"], found["d"][0]):
        torch.testing.assert_close(rows[0, 1], noise(3, 2, 5)[2, 1])


def test_of_what_has_no_mean_one_member_stands_for_all() -> None:
    texts = torch.tensor([[0.0], [4.0], [5.0]])[:, None]  # (3, 1, 1)
    tokens = torch.tensor([[1, 2], [3, 4], [5, 6]])
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    merged = mean_condition({"c": texts, "ids": tokens}, {"m": mask}, {})
    assert merged["c"].item() == 4.0 and merged["ids"].tolist() == [[3, 4]]  # nearest to the mean of 3
    assert merged["m"].tolist() == [[True, True]]
    alike = mean_condition({"c": texts, "ids": tokens[:1].repeat(3, 1)}, {}, {})
    assert alike["c"].item() == 3.0 and alike["ids"].tolist() == [[1, 2]]
    most = torch.tensor([[9, 9], [3, 4], [3, 4]])
    assert mean_condition({"ids": most}, {}, {})["ids"].tolist() == [[3, 4]]
    assert mean_condition({"ids": most[:1].repeat(3, 1)}, {}, {})["ids"].tolist() == [[9, 9]]


# -- objects ---------------------------------------------------------------------------------------


class Cache:
    """Holds keys of each row, say."""


@pytest.mark.parametrize("value", [Cache(), {"a": Cache()}, (1, Cache()), [1, 2], lambda: None])
def test_objects_that_the_table_does_not_name_are_refused(value: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"`cache(\.a)?`, .*FAMILIES"):
        family().tensors({"x": x(), "cache": value}, "Model")
    arguments = {"x": x(), "cache": value}
    assert run(family(neither="cache"), arguments)["cache"] == value


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.5, "text", (1, 2.0, None), {"scale": 1.0, "more": {"a": ()}}, torch.float16, []],
)
def test_settings_of_the_whole_call_pass(value: Any) -> None:
    assert run(family(), {"x": x(), "setting": value})["setting"] == value


def test_what_is_omitted_is_not_given_to_the_model() -> None:
    declared_as = family(omitted="cache mode")
    named = declared_as.named(["x", "cache"], [1, Cache()], {"mode": "read", "more": 2})
    assert named == {"x": 1, "cache": None, "mode": None, "more": 2}
    assert declared_as.named(["x"], [1], {}) == {"x": 1}


# -- declarations ----------------------------------------------------------------------------------


def test_a_pipeline_may_give_an_argument_another_role() -> None:
    changed = {"Changed": {"arguments": {"t": "condition"}, "makes": "videos"}}
    found = family(pipelines=changed)
    assert found.in_pipeline(["Other", "object"]) is found
    other = found.in_pipeline(["Derived", "Changed"])
    assert other.arguments == {"x": "row", "t": "condition", "c": "condition"} and other.makes == "videos"
    with pytest.raises(ValueError, match="of every mask"):
        family(pipelines={"Wrong": {"arguments": {"m": "mask"}}})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"axes": {"y": 1}}, "y: axes are those of"),
        ({"several": frozenset({"x"})}, "x: axes are those of"),
        ({"several": frozenset({"c"}), "zero_padded": frozenset({"c"})}, "c: what has several"),
        ({"omitted": frozenset({"c"})}, "c: what is omitted"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(family(), **changes)
