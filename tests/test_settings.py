"""A model's own defaults: taken where they apply, refused where they are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sagediff.cli.settings import preferred_scheduler
from sagediff.errors import InputError


def model_with(tmp_path: Path, defaults: Any) -> str:
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "sagediff.json").write_text(json.dumps(defaults), encoding="utf-8")
    return str(tmp_path)


def test_the_built_in_model_prefers_its_scheduler_only_with_enough_steps() -> None:
    assert preferred_scheduler("demo", 30) == preferred_scheduler("demo", 20) == "dpm++-beta"
    assert preferred_scheduler("demo", 19) is None


def test_models_without_a_preference_keep_their_own(tmp_path: Path) -> None:
    assert preferred_scheduler(model_with(tmp_path, {"threshold": 0.5}), 30) is None
    assert preferred_scheduler("some/hub-id", 30) is None


@pytest.mark.parametrize(
    "entry",
    ["dpm++", {"name": "other", "least_steps": 3}, {"name": "ddim"}, {"name": "ddim", "least_steps": "3"}],
)
def test_a_preference_of_another_form_is_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(InputError, match="least_steps"):
        preferred_scheduler(model_with(tmp_path, {"scheduler": entry}), 30)
