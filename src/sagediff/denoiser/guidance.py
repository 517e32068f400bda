"""How pipelines guide, as data: the parts that the denoiser's calls of one solver call are made of, in order.

A part is one row per prompt. "conditional" is there in every way, and early: where guidance is left out, every other
part takes the conditional prediction for its own, which makes each of these formulas give that prediction. A way is
declared for a pipeline class (or a base of it) where the denoiser's family does not say it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sagediff.errors import UnsupportedPipelineError

if TYPE_CHECKING:
    from sagediff.denoiser.family import Family

Part: TypeAlias = str
CONDITIONAL: Part = "conditional"
NEGATIVE: Part = "negative"
PERTURBED: Part = "perturbed"  # the prompt's own condition, on a model that is made worse
IMAGE: Part = "image"  # the negative prompt, with the image that is edited

MOVED_BY_SHARED_GUIDANCE = frozenset({CONDITIONAL, NEGATIVE, PERTURBED})
"""Parts of a call whose negative rows can be moved so that another guidance scale comes out."""


@dataclass(frozen=True)
class Way:
    """One way to guide.

    Attributes:
        calls: of each denoiser call in a solver call the parts, one after another in the batch.
        flags: attributes of the pipeline that are true where it guides so, and in no other of its ways.
        whole: the denoiser's attention tells the parts by their place in the batch, so that all of them must run, and
            equally long.
        keyword: of the pipeline's call, without which it does not guide so; for plans.
        unlike: parts whose latents come with other values beside them than the other parts' (no image to edit).

    Raises:
        ValueError: a part that is left out would find no conditional prediction to take.
    """

    calls: tuple[tuple[Part, ...], ...]
    flags: frozenset[str] = frozenset()
    whole: bool = False
    keyword: str | None = None
    unlike: frozenset[Part] = frozenset()

    def __post_init__(self) -> None:
        if not self.calls or CONDITIONAL not in self.calls[0]:
            raise ValueError(
                "two calls with the negative one first cannot be shared: what stands in for it is missing"
            )
        parts = [part for call in self.calls for part in call]
        if len(set(parts)) != len(parts):
            raise ValueError(f"each part comes once: {', '.join(parts)}")

    @property
    def rows_per_prompt(self) -> int:
        return sum(map(len, self.calls))


UNGUIDED = Way(((CONDITIONAL,),))
_GUIDED = Way(((NEGATIVE, CONDITIONAL),))
_PAG = frozenset({"do_perturbed_attention_guidance"})
_STG, _ISOLATED = "do_spatio_temporal_guidance", "do_modality_isolation_guidance"
_TEXT_AND_IMAGE = Way(((CONDITIONAL, IMAGE, NEGATIVE),), unlike=frozenset({NEGATIVE}))


def _ltx2() -> tuple[Way, ...]:
    """Guided or not, then one call for each further guidance that is on."""
    further = {
        (): (),
        (_STG,): (PERTURBED,),
        (_ISOLATED,): ("isolated",),
        (_STG, _ISOLATED): (PERTURBED, "isolated"),
    }
    return tuple(
        Way((first, *((part,) for part in parts)), frozenset(flags))
        for first in UNGUIDED.calls + _GUIDED.calls
        for flags, parts in further.items()
    )


WAYS: dict[str, tuple[Way, ...]] = {  # by pipeline class, or a base of it
    "PAGMixin": (
        UNGUIDED,
        _GUIDED,
        Way(((CONDITIONAL, PERTURBED),), flags=_PAG, whole=True),
        Way(((NEGATIVE, CONDITIONAL, PERTURBED),), flags=_PAG, whole=True),
    ),
    "StableDiffusionInstructPix2PixPipeline": (UNGUIDED, _TEXT_AND_IMAGE),
    "StableDiffusionXLInstructPix2PixPipeline": (UNGUIDED, _TEXT_AND_IMAGE),
    "DreamLitePipeline": (
        _GUIDED,
        Way(((NEGATIVE, IMAGE, CONDITIONAL),), unlike=frozenset({NEGATIVE})),
    ),
    "StableDiffusion3Pipeline": (  # skip-layer guidance, at some of the steps
        UNGUIDED,
        _GUIDED,
        Way(((NEGATIVE, CONDITIONAL), (PERTURBED,)), keyword="skip_guidance_layers"),
    ),
    **dict.fromkeys(
        (
            "LTX2Pipeline",
            "LTX2ImageToVideoPipeline",
            "LTX2ConditionPipeline",
            "LTX2InContextPipeline",
            "LTX2HDRPipeline",
        ),
        _ltx2(),
    ),
}


def ways_of(pipeline_class: type, family: Family) -> tuple[Way, ...]:
    """The ways in which a pipeline guides: declared for its class, or else as its denoiser's family says."""
    for cls in pipeline_class.__mro__:
        if cls.__name__ in WAYS:
            return WAYS[cls.__name__]
    return family.ways


def planned_rows(
    ways: Sequence[Way], guided: bool, is_on: Callable[[str], bool], keywords: Mapping[str, Any]
) -> int:
    """Most denoiser rows per prompt of a solver call that a run will have.

    Args:
        guided: whether it will have negative rows.
        is_on: whether an attribute of the pipeline will be true.
        keywords: of its call.
    """
    flags = {flag for way in ways for flag in way.flags if is_on(flag)}
    rows = [
        (way.keyword is not None, way.rows_per_prompt)
        for way in ways
        if way.flags == flags
        and any(NEGATIVE in call for call in way.calls) == guided
        and (way.keyword is None or keywords.get(way.keyword) is not None)
    ]
    if any(by_keyword for by_keyword, _ in rows):
        return max(count for _, count in rows)
    return min((count for _, count in rows), default=2 if guided else 1)


class Guiding:
    """Tells the parts of a pipeline's denoiser calls.

    Args:
        ways: those of the pipeline (`ways_of`).
        is_on: whether an attribute of the pipeline is true.
    """

    def __init__(self, ways: Sequence[Way], is_on: Callable[[str], bool]) -> None:
        self._ways = ways
        self._is_on = is_on
        self._flags = frozenset(flag for way in ways for flag in way.flags)

    def way(
        self,
        earlier: Sequence[tuple[Part, ...]],
        rows: int,
        prompts: int,
        guided: bool | None,
        is_first: bool,
    ) -> Way:
        """A way whose call number `len(earlier)` is one with so many rows; all that fit have the same parts there.

        Args:
            earlier: the parts of the solver call's calls before.
            guided: whether the pipeline says that it carries negative rows; None: it cannot say.
            is_first: whether it is the run's first solver call, where nothing else has told yet how many latents there
                are: then the number of rows must be as the pipeline says that it guides.

        Raises:
            UnsupportedPipelineError: none fits.
        """
        number, flags = len(earlier), {flag for flag in self._flags if self._is_on(flag)}
        possible = [
            way
            for way in self._ways
            if way.flags == flags and len(way.calls) > number and way.calls[:number] == tuple(earlier)
        ]
        if number and not possible:
            raise UnsupportedPipelineError(
                f"the pipeline called its denoiser {number + 1} times in one step, which sharing cannot assign: switch "
                f"off the guidance that makes the further call"
            )
        told = possible
        if number == 0 and guided is not None and any(NEGATIVE in way.calls[0] for way in possible):
            told = [way for way in possible if (NEGATIVE in way.calls[0]) == guided]
        for candidates in (told,) if is_first else (told, possible):
            fits = [way for way in candidates if len(way.calls[number]) * prompts == rows]
            if len({way.calls[number] for way in fits}) == 1:
                return min(fits, key=lambda way: len(way.calls))
        if rows == 3 * prompts and all(len(call) != 3 for way in self._ways for call in way.calls):
            raise UnsupportedPipelineError(
                f"the pipeline runs 3 rows per prompt ({rows} for {prompts}), and "
                f"sagediff.denoiser.guidance.WAYS does not say which parts those are"
            )
        raise _unassigned(rows, prompts, {len(way.calls[number]) for way in told or possible})


def _unassigned(rows: int, prompts: int, known: Collection[int]) -> UnsupportedPipelineError:
    expected = " or ".join(str(count * prompts) for count in sorted(known))
    return UnsupportedPipelineError(
        f"the pipeline calls its denoiser with {rows} rows, but the share plan has {prompts} "
        f"prompts ({expected} rows expected): give exactly the plan's prompts, with "
        f"num_images_per_prompt=1 (repeat a prompt in the plan instead)"
    )
