"""Every current pipeline class of diffusers is in one list: run by a recipe, refused, or no sampler of texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import census, matrix

from sagediff.denoiser.lookup import denoisers_of
from sagediff.denoiser.refused import MODULAR_REFUSED, NOT_TEXT_SAMPLERS, REFUSED, check_pipeline_class
from sagediff.errors import UnsupportedPipelineError
from sagediff.pipelines.loading import load_for_planning
from sagediff.pipelines.model_source import ModelSource


def test_every_pipeline_class_is_told() -> None:
    current = census.current_pipelines()
    lists = [census.exact(), set(REFUSED), set(NOT_TEXT_SAMPLERS)]
    assert sum(map(len, lists)) == len(set.union(*lists)), "a class is in two lists"
    assert REFUSED.keys() | NOT_TEXT_SAMPLERS.keys() <= current.keys()
    asked = {name for name, cls in current.items() if census.takes_prompts(cls)}
    assert current.keys() - asked <= NOT_TEXT_SAMPLERS.keys(), (
        "takes no prompt: say in NOT_TEXT_SAMPLERS what it does"
    )
    assert census.untold() == []
    inherited = {
        name
        for name in census.exact() & current.keys()
        for base in current[name].__mro__
        if base.__name__ in REFUSED
    }
    assert not inherited, "refused with the class that it is of"


def test_every_modular_pipeline_class_is_told() -> None:
    current, exact = census.modular_pipelines(), {name for name in census.exact() if "Modular" in name}
    assert exact | MODULAR_REFUSED.keys() <= current and not exact & MODULAR_REFUSED.keys()
    assert current - exact - MODULAR_REFUSED.keys() == set()


def test_what_is_refused_is_told_in_one_sentence() -> None:
    for name in (*REFUSED, *MODULAR_REFUSED, *NOT_TEXT_SAMPLERS):
        with pytest.raises(UnsupportedPipelineError, match=rf"^{name} [^\n]{{9,200}}[^\n.]$"):
            check_pipeline_class(f"Other{name}", name)


def test_a_refused_pipeline_is_refused_before_it_is_loaded_and_when_it_shares(tmp_path: Path) -> None:
    index = {"_class_name": "MarigoldDepthPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedPipelineError, match="MarigoldDepthPipeline estimates the depth"):
        load_for_planning(ModelSource(str(tmp_path)))

    class MarigoldDepthPipeline:
        pass

    class Finetuned(MarigoldDepthPipeline):
        pass

    with pytest.raises(UnsupportedPipelineError, match="MarigoldDepthPipeline estimates the depth"):
        denoisers_of(Finetuned())


def test_the_page_lists_them_as_they_are() -> None:
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.renewed(page) == page, "renew it: PYTHONPATH=tests python -m tiny.matrix"
