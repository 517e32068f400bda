"""diffusers' caches by name: what the denoiser computed at a step is used again at the next ones.

How they live with sharing is `denoiser/caches.py`'s concern; here they are only named and switched on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sagediff.errors import InputError

_REFUSED = {
    "mag": "its ratios belong to one model and one number of steps",
    "sea": "sharing does not know what it remembers",
    "text-kv": "sharing does not know what it remembers",
}


@dataclass(frozen=True)
class StepCache:
    """A cache as it is named.

    Attributes:
        number: its threshold, or every how many steps it computes.
        make: (pipeline, denoiser, number) to the configuration that diffusers takes.
        whole: whether the number is a whole one of at least 2.
    """

    number: float
    make: Callable[[Any, Any, float], Any]
    whole: bool = False


def _first_block(pipe: Any, denoiser: Any, number: float) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=number)


def _taylor(pipe: Any, denoiser: Any, number: float) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=int(number), taylor_factors_dtype=denoiser.dtype)


def _pyramid(pipe: Any, denoiser: Any, number: float) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=int(number), current_timestep_callback=_timestep(pipe)
    )


def _faster(pipe: Any, denoiser: Any, number: float) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=int(number),
        current_timestep_callback=_timestep(pipe),
        attention_weight_callback=lambda _: 0.5,  # diffusers' own, where none is named
        is_guidance_distilled=True,  # else it takes the first half of the rows for the negative ones
    )


def _timestep(pipe: Any) -> Callable[[], Any]:
    if not hasattr(type(pipe), "current_timestep"):
        raise InputError(
            f"{type(pipe).__name__} does not tell at which timestep it is; take --cache first-block"
        )
    return lambda: pipe.current_timestep


CACHES = {
    "first-block": StepCache(0.05, _first_block),
    "taylorseer": StepCache(5, _taylor, whole=True),
    "pyramid": StepCache(2, _pyramid, whole=True),
    "faster": StepCache(2, _faster, whole=True),
}


def parse_cache(text: str) -> tuple[StepCache, float]:
    """`NAME` or `NAME:NUMBER`.

    Raises:
        InputError: another name, or a number out of range.
    """
    name, colon, given = text.partition(":")
    if name in _REFUSED:
        raise InputError(f"--cache {name} is not offered: {_REFUSED[name]}; take {_names()}")
    if name not in CACHES:
        raise InputError(f"--cache must be {_names()}, got {text[:60]!r}")
    cache = CACHES[name]
    if not colon:
        return cache, cache.number
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if cache.whole and not (number.is_integer() and 2 <= number <= 10_000):
        raise InputError(
            f"--cache {name}:N computes every Nth step, a whole number from 2; got {given[:40]!r}"
        )
    if not cache.whole and not 0 < number < math.inf:
        raise InputError(f"--cache {name}:THRESHOLD must be a number above 0, got {given[:40]!r}")
    return cache, number


def _names() -> str:
    return " or ".join(CACHES)


def enable_cache(pipe: Any, text: str) -> None:
    """Switch a cache on, on each of a pipeline's denoisers.

    Raises:
        InputError: the denoiser takes none, or not this one.
    """
    from sagediff.denoiser.lookup import denoisers_of

    cache, number = parse_cache(text)
    denoiser: Any
    for denoiser in denoisers_of(pipe):
        what = type(denoiser).__name__
        if not hasattr(denoiser, "enable_cache"):
            raise InputError(f"--cache {text}: diffusers has no caches for {what}; leave it out")
        try:
            denoiser.enable_cache(cache.make(pipe, denoiser, number))
        except InputError:
            raise
        except Exception as error:  # whatever diffusers says of blocks that it has no recipe for
            raise InputError(f"--cache {text} does not work with {what}: {error}".splitlines()[0]) from error
