"""How a row of the table (`table.py`) is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagediff.denoiser.family import Family, Role

GUIDED_IN_ONE_CALL: dict[str, Any] = {"guidance": "batched", "first": "negative"}
GUIDED_IN_TWO_CALLS: dict[str, Any] = {"guidance": "two calls", "first": "conditional"}


def declared(
    rows: str,
    conditions: str,
    *,
    discrete: str = "",
    masks: Mapping[str, str] | None = None,
    lengths: Mapping[str, str] | None = None,
    neither: str = "",
    several: str = "",
    omitted: str = "",
    **more: Any,
) -> Family:
    """A `Family` from names with spaces between them; the first row is the noisy latents."""
    masks, lengths = masks or {}, lengths or {}
    roles: dict[str, Role] = {
        **dict.fromkeys(rows.split(), "row"),
        **dict.fromkeys(conditions.split(), "condition"),
        **dict.fromkeys(discrete.split(), "discrete"),
        **dict.fromkeys(masks, "mask"),
        **dict.fromkeys(lengths, "length"),
        **dict.fromkeys(neither.split(), "neither"),
    }
    return Family(
        sample=rows.split()[0],
        arguments=roles,
        masks={**masks, **lengths},
        several=frozenset(several.split()),
        omitted=frozenset(omitted.split()),
        **more,
    )
