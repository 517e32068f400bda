"""`Sharing`: what a source says is taken, checked and written back, and later sources win."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sagediff
from sagediff.errors import InputError
from sagediff.plan.sharing import Sharing, for_guidance

part = st.floats(0, 1)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "threshold": st.floats(-1, 0.5),
    "share_ratio": st.floats(0, 0.5),
    "max_group_size": st.integers(1, 64),
    "shared_guidance": st.none() | st.floats(0, 30),
    "unguided": part,
    "handover_noise": part,
    "fresh_noise": part,
    "rungs": st.just(((0.6, 0.7), (0.8, 0.9))),
    "parting": st.sampled_from(["tree", "together"]),
    "repeats": st.sampled_from(["separate", "share"]),
}


def sharings() -> st.SearchStrategy[Sharing]:
    return st.fixed_dictionaries({}, optional=OPTIONS).map(
        lambda options: Sharing(**({"threshold": 0.2, "share_ratio": 0.4} | options))
    )


def test_every_option_is_tried_here() -> None:
    assert set(OPTIONS) == {each.name for each in fields(Sharing)}


@given(sharings())
def test_a_record_is_read_back(sharing: Sharing) -> None:
    assert Sharing.merged(Sharing.layer(json.loads(json.dumps(sharing.record())))) == sharing


def test_a_policy_file_is_read_back_and_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    sharing = sagediff.Sharing(0.2, 0.3, 4, None, 0.5, ((0.5, 0.4),), "together", 0.25, 0.5)
    sharing.save(tmp_path / "policy.json")
    assert sagediff.Sharing.load(tmp_path / "policy.json") == sharing
    record = sharing.record() | {"tuned": {"trials": 3}, "scheduler": {"name": "ddim"}}
    (tmp_path / "more.json").write_text(json.dumps(record))
    assert sagediff.Sharing.load(tmp_path / "more.json") == sharing
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


@given(sharings(), st.fixed_dictionaries({}, optional=OPTIONS))
def test_later_layers_win_and_leave_the_rest(sharing: Sharing, named: dict[str, Any]) -> None:
    if not {"threshold", "share_ratio"} <= set(named):
        named.pop("rungs", None)
    layer = Sharing.layer(named)
    merged = Sharing.merged(sharing.record() | {"rungs": sharing.rungs}, layer)
    for each in fields(Sharing):
        expected = layer[each.name] if each.name in layer else getattr(sharing, each.name)
        assert getattr(merged, each.name) == expected, each.name


def test_who_names_a_threshold_or_a_ratio_ends_the_rungs_of_earlier_layers() -> None:
    tree = Sharing.layer({"threshold": 0.2, "share_ratio": 0.3, "rungs": [[0.5, 0.4]]})
    assert Sharing.merged(tree).rungs == ((0.5, 0.4),)
    assert Sharing.merged(tree, Sharing.layer({"max_group_size": 3})).rungs == ((0.5, 0.4),)
    assert Sharing.merged(tree, Sharing.layer({"share_ratio": 0.4})).rungs == ()


def test_words_stand_for_values_that_a_command_line_cannot_spell() -> None:
    assert Sharing.layer({"shared_guidance": "same"}) == {"shared_guidance": None}


def test_naming_a_guidance_scale_drops_what_belongs_to_none() -> None:
    every = Sharing(unguided=1.0, handover_noise=1.0, fresh_noise=0.5).record()
    assert set(every) - set(for_guidance(every)) == {"unguided", "handover_noise"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold must lie in \[-1, 1\], got 1.5"),
        ({"threshold": float("nan")}, "threshold must lie in"),
        ({"threshold": True}, "threshold must be a number"),
        ({"share_ratio": "half"}, "share_ratio must be a number"),
        ({"max_group_size": 0}, "max_group_size must be at least 1, got 0"),
        ({"max_group_size": 2.5}, "max_group_size must be a whole number"),
        ({"shared_guidance": -1.0}, "shared_guidance must be at least 0, or be None, got -1"),
        ({"parting": "slowly"}, "parting must be 'tree' or 'together', got 'slowly'"),
        ({"rungs": ((0.1, 0.9),)}, "rungs must grow"),
    ],
)
def test_what_is_out_of_range_is_refused_with_rule_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sharing(**options)


# -- what is saved, and by what


VECTORS = np.repeat(np.eye(32, dtype=np.float32), 2, axis=0)  # 64 prompts in 32 pairs


def test_leaving_guidance_out_is_not_counted_as_sharing() -> None:
    plan = Sharing(0.5, 0.5, unguided=1.0).plan(VECTORS, 30)
    assert (plan.cost_saving, plan.sharing_saving, plan.guidance_saving) == (0.625, 0.25, 0.5)
    whole = Sharing(0.5, 0.5, shared_guidance=None).plan(VECTORS, 30)
    assert (whole.cost_saving, whole.sharing_saving, whole.guidance_saving) == (0.25, 0.25, 0.0)
    alone = Sharing(0.5, 0.0, unguided=0.5).plan(VECTORS, 30)
    assert (alone.cost_saving, alone.sharing_saving, alone.guidance_saving) == (0.25, 0.0, 0.25)


@given(sharings(), st.integers(1, 12), st.integers(1, 2))
def test_the_savings_multiply_to_the_whole(sharing: Sharing, steps: int, rows: int) -> None:
    plan = sharing.plan(VECTORS[:12], steps, rows)
    assert 0 <= plan.sharing_saving <= plan.cost_saving + 1e-12
    assert np.isclose(1 - plan.cost_saving, (1 - plan.sharing_saving) * (1 - plan.guidance_saving))
    unshared = Sharing(share_ratio=0.0, unguided=sharing.unguided).plan(VECTORS[:12], steps, rows)
    assert unshared.sharing_saving == 0
    if sharing.shared_guidance != 1.0:
        assert plan.evaluations_unshared == unshared.evaluations
