"""Which requests of a wave may share, and which of those mean nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sagediff.plan.grouping import group_prompts
from sagediff.plan.sharing import SharePolicy
from sagediff.serving.engine.requests import ImageRequest

Embed = Callable[[list[str]], npt.NDArray[np.float32]]
"""Prompts to one vector each, (N, D)."""


def group_requests(
    requests: Sequence[ImageRequest],
    policy: SharePolicy,
    embed: Embed,
    *,
    across_tenants: bool = False,
    repeats_may_share: bool = True,
) -> list[list[int]]:
    """Every request's number once, in groups; groups by their first member, members ascending.

    Groups never cross tenants unless `across_tenants`, nor negative prompts, since the shared steps have one for all.
    Requests that may not share are alone, and their prompts are not even embedded.

    Args:
        repeats_may_share: False where members with equal prompts could not be set apart by fresh noise, and would
            come out as one image: then each of them is in another group.
    """
    pools: dict[tuple[str, str | None, int], list[int]] = {}
    alone: list[list[int]] = []
    seen: dict[tuple[str, str | None, str], int] = {}
    for number, request in enumerate(requests):
        if not request.may_share or policy.share_ratio == 0:
            alone.append([number])
            continue
        tenant = "" if across_tenants else request.tenant
        text = (tenant, request.negative_prompt, request.prompt)
        copy = seen[text] = seen.get(text, -1) + 1
        pools.setdefault((tenant, request.negative_prompt, 0 if repeats_may_share else copy), []).append(
            number
        )
    groups = alone
    for members in pools.values():
        if len(members) == 1:
            groups.append(members)
            continue
        vectors = embed([requests[i].prompt for i in members])
        found = group_prompts(vectors, policy.threshold, policy.max_group_size)
        groups += [[members[i] for i in group] for group in found]
    return sorted(groups)
