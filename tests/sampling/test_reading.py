"""Equal prompts are those that the text encoders read as equal, and who is cut is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sagediff import SharedSampler
from sagediff.plan.compatibility import group_requests
from sagediff.plan.sharing import Sharing
from sagediff.plan.waves import Waves, repeats
from sagediff.prompts.requests import as_requests
from sagediff.sampling.reading import read_prompts

CAT = "a large cat at the top on a red background"
LONG = CAT + " and" * 40
ALIKE = [CAT, CAT.upper(), CAT.replace(" ", "  "), f"{LONG} one", f"{LONG} two"]


def test_case_spaces_and_what_is_cut_make_no_difference(small_demo: Any) -> None:
    reading = read_prompts(small_demo, ALIKE)
    assert len({reading.keys[i] for i in (0, 1, 2)}) == 1
    assert reading.keys[3] == reading.keys[4] != reading.keys[0]
    assert reading.cut == [3, 4] and reading.limit == small_demo.tokenizer.model_max_length
    words = reading.warning()
    assert words is not None and "2 prompts" in words and "3, 4" in words and "24 tokens" in words
    assert read_prompts(small_demo, ALIKE[:1]).warning() is None
    assert (
        read_prompts(small_demo, ["a cat", "a dog"]).keys[0]
        != read_prompts(small_demo, ["a cat", "a dog"]).keys[1]
    )


def test_the_reading_is_what_decides_the_condition(small_demo: Any) -> None:
    """Equal readings: equal to the last bit; unequal ones: not."""
    texts = [*ALIKE, "a small cat at the top on a red background"]
    reading = read_prompts(small_demo, texts)
    conditions = small_demo.encode_prompt(texts, "cpu", 1, False)[0].detach().flatten(1).numpy()
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert np.allclose(conditions[i], conditions[j], atol=1e-6) == (
                reading.keys[i] == reading.keys[j]
            )


def test_every_tokenizer_counts_and_only_what_all_of_them_cut_is_cut(small_demo: Any) -> None:
    longer = SimpleNamespace(
        tokenizer=small_demo.tokenizer, tokenizer_2=_WithLimit(small_demo.tokenizer, 100)
    )
    reading = read_prompts(longer, ALIKE)
    assert reading.keys[3] != reading.keys[4]  # the second reads the end
    assert reading.cut == [] and len(set(reading.keys)) == 3


class _WithLimit:
    """Not of transformers' kind, unless it stands for one."""

    def __new__(cls, tokenizer: Any, limit: int) -> Any:
        from copy import deepcopy

        made = deepcopy(tokenizer)
        made.model_max_length = limit
        return made


@pytest.mark.parametrize("tokenizer", [None, object()])
def test_without_a_tokenizer_of_a_known_kind_texts_are_what_they_are(tokenizer: Any) -> None:
    reading = read_prompts(SimpleNamespace(tokenizer=tokenizer), ALIKE)
    assert reading.keys == ALIKE and reading.cut == []


def test_copies_are_told_by_what_is_read(small_demo: Any) -> None:
    requests, keys = as_requests(ALIKE), read_prompts(small_demo, ALIKE).keys
    groups = [list(range(5))]
    assert sum(repeats(requests, groups)) == 0
    assert sum(repeats(requests, groups, keys)) == 3
    # whatever the order
    backwards = list(reversed(range(5)))
    again = repeats([requests[i] for i in backwards], groups, [keys[i] for i in backwards])
    assert [again[backwards.index(i)] for i in range(5)] == repeats(requests, groups, keys)

    def embed(texts: list[str]) -> Any:
        return np.ones((len(texts), 2), np.float32)

    apart = group_requests(requests, Sharing(), embed, repeats_may_share=False, read=keys)
    assert all(len({keys[i] for i in group}) == len(group) for group in apart)
    assert group_requests(requests, Sharing(), embed, repeats_may_share=False) == [[0, 1, 2, 3, 4]]


def test_prompts_that_read_alike_come_out_different(small_demo: Any) -> None:
    result = SharedSampler(small_demo, threshold=0.9, share_ratio=0.5)(ALIKE, 4, 4.0)
    images = [np.asarray(image, dtype=int) for image in result.images]
    for i in range(5):
        for j in range(i):
            assert np.abs(images[i] - images[j]).mean() > 1
    assert result.report["cut_prompts"] == 2


def test_copies_have_seeds_of_their_own_where_they_have_noise_of_their_own(small_demo: Any) -> None:
    requests = as_requests([CAT, CAT, CAT.upper(), "a large dog at the top on a red background"])
    keys = read_prompts(small_demo, [request.prompt for request in requests]).keys
    sharing = Sharing(threshold=-1.0, share_ratio=0.5)
    for ratio, noise, different in ((0.5, 0.75, 3), (0.5, 0.0, 1), (1.0, 0.75, 1), (0.0, 0.75, 4)):
        sharing = Sharing(threshold=-1.0, share_ratio=ratio, fresh_noise=noise)
        groups = [[0, 1, 2, 3]] if ratio else [[0], [1], [2], [3]]
        waves = Waves(requests, sharing.plan_groups(groups, 4), 0, 64, read=keys)
        seeds = waves.seeds(lambda request, own=sharing: own)
        assert len(set(seeds)) == different
        assert len(set(seeds[:3])) == min(different, 3)


def test_the_seed_of_what_shared_nothing_gives_its_image_again(small_demo: Any) -> None:
    prompts = [CAT, "a small dog at the bottom left on a blue background"]
    sampler = SharedSampler(small_demo, threshold=1.0)
    result = sampler(prompts, 2, 4.0)
    import torch

    for prompt, seed, image in zip(prompts, result.seeds, result.images, strict=True):
        alone = small_demo(
            prompt, num_inference_steps=2, guidance_scale=4.0, generator=torch.Generator().manual_seed(seed)
        ).images[0]
        assert np.abs(np.asarray(alone, dtype=int) - np.asarray(image, dtype=int)).max() <= 1
