"""Ways to guide: the parts of a step's calls, told by their rows, by the calls before, and by the pipeline."""

from __future__ import annotations

import diffusers
import pytest

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.guidance import CONDITIONAL, WAYS, Guiding, Way, ways_of
from sagediff.denoiser.lookup import FAMILIES
from sagediff.errors import UnsupportedPipelineError

UNET = FAMILIES["UNet2DConditionModel"]


def guiding(pipeline: str, *flags: str) -> Guiding:
    return Guiding(ways_of(getattr(diffusers, pipeline), UNET), lambda flag: flag in flags)


def parts(
    told: Guiding, rows: int, *earlier: tuple[str, ...], guided: bool | None = None, is_first: bool = True
) -> tuple[str, ...]:
    """Of a call for 2 prompts."""
    return told.way(earlier, rows, 2, guided, is_first).calls[len(earlier)]


def test_every_way_has_the_conditional_part_first_and_names_a_class_of_diffusers() -> None:
    for name, ways in WAYS.items():
        assert name == "PAGMixin" or hasattr(diffusers, name)
        for way in ways:
            assert CONDITIONAL in way.calls[0]
            assert DenoiserCall(1, 0, 0, 2, way).place(CONDITIONAL) == 0


@pytest.mark.parametrize("calls", [(), (("negative",), ("conditional",)), (("conditional", "conditional"),)])
def test_a_way_that_cannot_be_shared_is_refused(calls: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"negative one first|each part comes once"):
        Way(calls)


def test_a_flag_of_the_pipeline_tells_the_perturbed_part_from_the_conditional_one() -> None:
    on = guiding("StableDiffusionPAGPipeline", "do_perturbed_attention_guidance")
    off = guiding("StableDiffusionPAGPipeline")
    assert parts(on, 6) == ("negative", "conditional", "perturbed")
    assert parts(on, 4) == ("conditional", "perturbed")
    assert parts(off, 4) == ("negative", "conditional")
    assert parts(off, 2) == ("conditional",)
    with pytest.raises(UnsupportedPipelineError, match="6 rows, but the share plan has 2 prompts"):
        parts(on, 6, guided=False)


def test_calls_of_a_step_are_told_by_those_before() -> None:
    skipping = guiding("StableDiffusion3Pipeline")
    first = ("negative", "conditional")
    assert parts(skipping, 2, first) == ("perturbed",)
    with pytest.raises(UnsupportedPipelineError, match="3 times in one step"):
        parts(skipping, 2, first, ("perturbed",))
    with pytest.raises(UnsupportedPipelineError, match="2 times in one step"):
        parts(skipping, 2, ("conditional",))


def test_ltx_2_says_which_further_calls_it_makes() -> None:
    first = ("negative", "conditional")
    stg, isolation = "do_spatio_temporal_guidance", "do_modality_isolation_guidance"
    assert parts(guiding("LTX2Pipeline", stg), 2, first) == ("perturbed",)
    assert parts(guiding("LTX2Pipeline", isolation), 2, first) == ("isolated",)
    assert parts(guiding("LTX2Pipeline", stg, isolation), 2, first, ("perturbed",)) == ("isolated",)


def test_rows_must_be_as_the_pipeline_says_until_a_step_has_shown_how_many_latents_there_are() -> None:
    plain = guiding("StableDiffusionPipeline")
    with pytest.raises(UnsupportedPipelineError, match="num_images_per_prompt=1"):
        parts(plain, 2, guided=True)
    assert parts(plain, 2, guided=True, is_first=False) == ("conditional",)  # Z-Image's truncated guidance


def test_rows_and_places_of_parts() -> None:
    way = Way((("negative", "conditional"), ("perturbed",)))
    first, second = (DenoiserCall(1, 0, 0, 2, way, number) for number in (0, 1))
    assert list(first.first_rows()) == [(0, "negative"), (2, "conditional")]
    assert (first.rows, second.rows) == (4, 2)
    assert [first.place(part) for part in first.parts] == [1, 0]
    assert second.place("perturbed") == 2
    assert first.owner(3) == ("conditional", 1)
