"""Sizes that a pipeline cannot make are refused before it runs, and what it made of others is noticed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tiny import RECIPES
from tiny.parts import SCHEDULERS

from sagediff import ImageRequest, InputError, SharedSampler
from sagediff.pipelines.loading import load_for_planning
from sagediff.sampling.sizes import check_sizes, other_size, size_multiple

MULTIPLES = {
    "sd": 8, "sdxl": 8, "sd3": 4, "flux": 4, "flux2": 16, "sana": 32, "pixart-sigma": 8, "auraflow": 16,
    "lumina2": 16, "qwen-image": 16, "chroma": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", MULTIPLES)
def test_sizes_are_multiples_of_what_the_pipelines_own_check_says(name: str) -> None:
    recipe = RECIPES[name]
    pipe = recipe.build(SCHEDULERS[recipe.schedulers[0]]())
    before = dict(vars(pipe))
    assert size_multiple(pipe) == MULTIPLES[name]
    assert vars(pipe).keys() == before.keys()


def test_a_pipeline_that_checks_nothing_takes_its_autoencoders_factor() -> None:
    class Bare:
        vae_scale_factor = 8

        def __call__(self, prompt: Any) -> None: ...

    assert size_multiple(Bare()) == 8


def test_without_its_autoencoder_a_pipeline_is_not_stricter(demo: Any) -> None:
    recipe = RECIPES["sd3"]
    pipe = recipe.build(SCHEDULERS[recipe.schedulers[0]]())
    factor = pipe.vae_scale_factor
    assert MULTIPLES["sd3"] % size_multiple(pipe, knows_factor=False) == 0 and pipe.vae_scale_factor == factor
    assert size_multiple(load_for_planning("demo")[0], knows_factor=False) == 8


def test_an_image_of_another_size_than_asked_for_is_none() -> None:
    image = SimpleNamespace(size=(64, 48))
    assert other_size((None, None), image) == other_size((64, 48), image) == ""
    assert "makes 64x48 of the size 65x48" in other_size((65, 48), image)


def test_a_size_that_cannot_be_made_is_refused_before_anything_runs(demo: Any) -> None:
    wanted = [
        ImageRequest("a"),
        ImageRequest("b", width=60, height=64),
        ImageRequest("c", width=64, height=63),
    ]
    with pytest.raises(
        InputError, match=r"prompt 1: StableDiffusionPipeline makes no image of 60x64; .* of 8"
    ):
        SharedSampler(demo)(wanted, 1)
    with pytest.raises(InputError, match=r"p\.csv, line 3: "):
        check_sizes(demo, wanted[1:], lambda i: f"p.csv, line {i + 3}")
    check_sizes(demo, [wanted[0], ImageRequest("d", width=32, height=64)])


def test_an_image_of_another_size_is_not_taken_for_the_one_asked_for(
    demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagediff.sampling.sizes.size_multiple", lambda pipe, **more: 1)
    rounding = type("Rounding", (type(demo),), {"__call__": _rounded(type(demo).__call__)})
    monkeypatch.setattr(demo, "__class__", rounding)
    with pytest.raises(InputError, match="makes 64x64 of the size 65x64"):
        SharedSampler(demo)([ImageRequest("a", width=65, height=64)], 1)


def _rounded(call: Any) -> Any:
    from functools import wraps

    @wraps(call)
    def rounded(self: Any, *args: Any, width: int, height: int, **kwargs: Any) -> Any:
        return call(self, *args, width=width // 8 * 8, height=height // 8 * 8, **kwargs)

    return rounded
