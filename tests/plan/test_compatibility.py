"""Groups of a wave: everyone in one of them, nobody with whom he must not share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from sagediff.plan.compatibility import copy_numbers, group_requests
from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import QueuedRequest

POLICY = Sharing(threshold=0.9, share_ratio=0.5, max_group_size=3)
MEANINGS = ["cat", "dog", "star"]


def by_meaning(prompts: list[str]) -> npt.NDArray[np.float32]:
    """Prompts mean the same if they end with the same word."""
    return np.eye(len(MEANINGS), dtype=np.float32)[[MEANINGS.index(p.split()[-1]) for p in prompts]]


@st.composite
def requests(draw: st.DrawFn) -> list[QueuedRequest]:
    return [
        QueuedRequest(
            id=str(i),
            prompt=f"{draw(st.sampled_from(['a', 'one']))} {draw(st.sampled_from(MEANINGS))}",
            negative_prompt=draw(st.sampled_from(["", "blue"])),
            num_inference_steps=4,
            seed=draw(st.sampled_from([None, 1])),
            share=draw(st.sampled_from([None, True, False])),
            tenant=draw(st.sampled_from(["one", "two"])),
        )
        for i in range(draw(st.integers(1, 12)))
    ]


@given(requests(), st.booleans(), st.booleans())
def test_groups_hold_everyone_once_and_only_those_who_may_meet(
    wave: list[QueuedRequest], opened: bool, repeats: bool
) -> None:
    groups = group_requests(wave, POLICY, by_meaning, across_tenants=opened, repeats_may_share=repeats)
    assert sorted(i for group in groups for i in group) == list(range(len(wave)))
    assert groups == sorted(sorted(group) for group in groups)
    for group in groups:
        members = [wave[i] for i in group]
        assert len(members) <= POLICY.max_group_size
        if len(members) > 1:
            assert all(member.may_share for member in members)
            assert len({member.prompt.split()[-1] for member in members}) == 1
            assert len({member.negative_prompt for member in members}) == 1
            assert opened or len({member.tenant for member in members}) == 1
            assert repeats or len({member.prompt for member in members}) == len(members)


@given(requests())
def test_other_tenants_change_nothing_for_one(wave: list[QueuedRequest]) -> None:
    """What a tenant's requests are grouped into does not tell of who else is in the wave."""
    mine = [request for request in wave if request.tenant == "one"]
    if not mine:
        return

    def names(requests: list[QueuedRequest]) -> list[list[str]]:
        groups = group_requests(requests, POLICY, by_meaning)
        of_mine = [[requests[i].id for i in group if requests[i].tenant == "one"] for group in groups]
        return sorted(group for group in of_mine if group)

    assert names(wave) == names(mine)


@given(requests())
def test_copies_are_in_different_groups_unless_they_may_share(wave: list[QueuedRequest]) -> None:
    read = [request.prompt.replace("one ", "a ") for request in wave]  # what an encoder might read
    for group in group_requests(wave, POLICY, by_meaning, read=read):
        assert len({read[i] for i in group}) == len(group)
    together = replace(POLICY, repeats="share", max_group_size=64)
    able = [i for i, request in enumerate(wave) if request.may_share]
    for group in group_requests(wave, together, by_meaning, read=read):
        for i in able:  # nobody who might be in it is left out
            same = (read[i], wave[i].negative_prompt, wave[i].tenant) == (
                read[group[0]], wave[group[0]].negative_prompt, wave[group[0]].tenant
            )  # fmt: skip
            assert i in group or not same or group[0] not in able


def test_the_second_copies_of_similar_prompts_share() -> None:
    texts = ["a cat", "one cat", "a cat", "a star", "one cat", "a cat"]
    wave = [QueuedRequest(id=str(i), prompt=text, num_inference_steps=4) for i, text in enumerate(texts)]
    assert group_requests(wave, POLICY, by_meaning) == [[0, 1], [2, 4], [3], [5]]
    assert copy_numbers(texts) == [0, 0, 1, 0, 1, 2]
    plan = POLICY.plan(by_meaning(texts), 4, copies=copy_numbers(texts))
    assert plan.groups == [[0, 1], [2, 4], [3], [5]]
    assert replace(POLICY, repeats="share").plan(by_meaning(texts), 4, copies=copy_numbers(texts)).groups == [
        [0, 1, 2], [3], [4, 5],
    ]  # fmt: skip


def test_prompts_that_may_not_share_are_not_embedded() -> None:
    def refuse(prompts: list[str]) -> npt.NDArray[np.float32]:
        raise AssertionError(f"embedded {prompts}")

    wave = [QueuedRequest(id=str(i), prompt="a cat", num_inference_steps=4, share=False) for i in range(3)]
    wave.append(QueuedRequest(id="alone", prompt="a cat", num_inference_steps=4))
    assert group_requests(wave, POLICY, refuse) == [[0], [1], [2], [3]]
    unshared = Sharing(share_ratio=0.0)
    three = [QueuedRequest(id=str(i), prompt="a cat", num_inference_steps=4) for i in range(3)]
    assert len(group_requests(three, unshared, refuse)) == 3
