"""Which requests may run in one call of the pipeline, which may share steps, and the groups that follow. Pure.

Both are read off `ImageRequest`: a field says for itself what it must agree for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError
from sagediff.plan.grouping import group_prompts
from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import ImageRequest

Embed = Callable[[list[str]], npt.NDArray[np.float32]]
"""Prompts to one vector each, (N, D)."""
Key = tuple[Hashable, ...]


def run_key(request: ImageRequest) -> Key:
    """Requests with equal keys may run in one call of the pipeline."""
    # pipelines take negative prompts for all prompts or for none
    return *_agreeing(request, "call", ()), request.negative_prompt is not None


def share_key(request: ImageRequest, across_tenants: bool = False) -> Key:
    """Requests of one call with equal keys may share steps, if their prompts are similar and they `may_share`."""
    return tuple(_agreeing(request, "group", ("tenant",) if across_tenants else ()))


def group_requests(
    requests: Sequence[ImageRequest],
    sharing: Sharing,
    embed: Embed,
    *,
    across_tenants: bool = False,
    repeats_may_share: bool | None = None,
    read: Sequence[Hashable] | None = None,
    starts: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Every request's number once, in groups; groups by their first member, members ascending.

    Requests that may not share are alone, and their prompts are not even embedded.

    Args:
        repeats_may_share: whether copies of a prompt may be in one group; None: as `sharing` says. If not, the first
            copies of similar prompts share with one another, the second ones, and so on.
        read: for each request what the model's encoders read of its prompt: prompts of which they read the same are
            equal.  None: its text.
        starts: for each request what else its image is begun from; only requests with equal ones share.
    """
    if repeats_may_share is None:
        repeats_may_share = sharing.repeats_may_share
    pools = sharing_pools(requests, sharing, across_tenants=across_tenants, starts=starts)
    copies = [0] * len(requests)
    if not repeats_may_share:
        prompts: Sequence[Hashable] = [request.prompt for request in requests] if read is None else read
        copies = copy_numbers(list(zip(pools, prompts, strict=True)))
    divided: dict[Hashable, list[int]] = {}
    groups: list[list[int]] = []
    for number, (pool, copy) in enumerate(zip(pools, copies, strict=True)):
        if pool is None:
            groups.append([number])
        else:
            divided.setdefault((pool, copy), []).append(number)
    for members in divided.values():
        if len(members) == 1:
            groups.append(members)
            continue
        vectors = embed([requests[i].prompt for i in members])
        found = group_prompts(vectors, sharing.threshold, sharing.max_group_size)
        groups += [[members[i] for i in group] for group in found]
    return sorted(groups)


def sharing_pools(
    requests: Sequence[ImageRequest],
    sharing: Sharing,
    *,
    across_tenants: bool = False,
    starts: Sequence[Hashable] | None = None,
) -> list[int | None]:
    """For each request the number of those that it may share with; None where it may share with none.

    The arguments are those of `group_requests`.
    """
    numbers: dict[Key, int] = {}
    out: list[int | None] = []
    for place, request in enumerate(requests):
        if not request.may_share or sharing.share_ratio == 0:
            out.append(None)
            continue
        key = (*run_key(request), *share_key(request, across_tenants))
        if starts is not None:
            key = (*key, starts[place])
        out.append(numbers.setdefault(key, len(numbers)))
    return out


def check_groups_agree(
    requests: Sequence[ImageRequest], groups: Sequence[Sequence[int]], calls: Sequence[Hashable]
) -> None:
    """Groups that were made elsewhere hold only requests that may run in one call, and begin from equal images.

    Args:
        calls: for each request what else must be equal of all that run in one call.

    Raises:
        InputError: two of a group differ; they are numbered.
    """
    for group in groups:
        first, *others = group
        for other in others:
            one, two = ((*run_key(requests[i]), requests[i].images, requests[i].mask) for i in (first, other))
            if one != two or calls[first] != calls[other]:
                raise InputError(
                    f"prompts {first} and {other} are in one group, but differ in more than their texts: in size, "
                    f"guidance scale, image, mask, strength or LoRA, or one has no negative prompt; put them into "
                    f"different groups"
                )


def copy_numbers(read: Sequence[Hashable]) -> list[int]:
    """For each prompt how many that equal it come before."""
    seen: dict[Hashable, int] = {}
    out = []
    for key in read:
        out.append(seen.get(key, 0))
        seen[key] = out[-1] + 1
    return out


def _agreeing(request: ImageRequest, for_: str, but: Sequence[str]) -> list[Hashable]:
    return [
        getattr(request, each.name)
        for each in fields(request)
        if each.metadata.get("agree") == for_ and each.name not in but
    ]
