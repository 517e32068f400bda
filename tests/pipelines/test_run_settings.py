"""A model's own defaults: taken where they apply, refused where they are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sagediff.builtin.scenes import lora_dir
from sagediff.errors import InputError
from sagediff.files.lora_files import Lora, lora_file
from sagediff.pipelines.lora import RECORD_KEY, sharing_record
from sagediff.pipelines.run_settings import ModelOptions, RunSettings, SamplingOptions, resolve
from sagediff.plan.sharing import CAUTIOUS, Sharing


def model_with(tmp_path: Path, defaults: Any) -> str:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "sagediff.json").write_text(json.dumps(defaults), encoding="utf-8")
    return str(tmp_path)


def settings(
    model: str = "demo", lora: Path | None = None, steps: int = 20, guidance: float | None = None,
    policy: Path | None = None, no_lora: bool = False, **given: Any,
) -> RunSettings:  # fmt: skip
    options = ModelOptions(model, () if lora is None else (str(lora),), no_lora)
    return resolve(options, SamplingOptions(steps, guidance), given, policy)


def scheduler(model: str, steps: int) -> str | None:
    return settings(model, steps=steps, no_lora=True).model.scheduler


def test_the_built_in_model_prefers_its_scheduler_only_with_enough_steps() -> None:
    assert scheduler("demo", 30) == scheduler("demo", 20) == "dpm++-beta"
    assert scheduler("demo", 19) is None
    assert settings("demo", steps=30).model.scheduler is None  # its LoRA was trained for the model's own


def test_models_without_a_preference_keep_their_own(tmp_path: Path) -> None:
    assert scheduler(model_with(tmp_path, {"threshold": 0.5}), 30) is None
    assert scheduler("some/hub-id", 30) is None


@pytest.mark.parametrize(
    "entry",
    ["dpm++", {"name": "other", "least_steps": 3}, {"name": "ddim"}, {"name": "ddim", "least_steps": "3"}],
)
def test_a_preference_of_another_form_is_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(InputError, match="least_steps"):
        scheduler(model_with(tmp_path, {"scheduler": entry}), 30)


def test_the_built_in_model_comes_with_a_lora_that_no_lora_leaves_out(tmp_path: Path) -> None:
    assert ModelOptions("demo").loras() == (Lora(lora_dir()),)
    assert ModelOptions("demo", no_lora=True).loras() == ()
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert ModelOptions("demo", (str(tmp_path),)).loras() == (Lora(tmp_path),)
    assert ModelOptions("some/hub-id").loras() == ()
    with pytest.raises(InputError, match="not both"):
        ModelOptions("demo", (str(tmp_path),), no_lora=True)


def test_the_lora_that_comes_with_it_is_small_and_says_what_it_was_trained_for() -> None:
    file = lora_file(lora_dir())
    record = sharing_record(file)
    assert file.stat().st_size <= 2_000_000
    assert record is not None and record["objective"] == "sage"
    assert 0 < record["share_ratio"] <= record["max_share_ratio"] < 1


def test_a_loras_record_sets_the_share_ratio_that_is_left_out(tmp_path: Path) -> None:
    model = model_with(tmp_path, {"share_ratio": 0.2})
    for name, record, ratio in (
        ("told", {RECORD_KEY: json.dumps({"share_ratio": 0.45})}, 0.45),
        ("untold", {RECORD_KEY: "{}"}, 0.2),
        ("of-others", {}, 0.2),
    ):
        file = tmp_path / f"{name}.safetensors"
        save_file({"a": torch.zeros(1)}, file, record)
        assert settings(model, file).sharing.share_ratio == ratio
        assert settings(model, file, share_ratio=0.6).sharing.share_ratio == 0.6
    assert settings(model).sharing.share_ratio == 0.2


def test_a_lora_folder_tells_how_its_weights_are_best_used(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    model = model_with(tmp_path / "model", {"guidance_scale": 5.0})
    (tmp_path / "sagediff.json").write_text(json.dumps({"unguided": 0.5, "handover_noise": 0.25}))
    found = settings(model, tmp_path)
    assert (found.sharing.unguided, found.sharing.handover_noise, found.sampling.guidance_scale) == (
        0.5,
        0.25,
        5.0,
    )
    # the file alone, not the folder, was named: what lies beside it may belong to something else
    assert settings(model, tmp_path / "weights.safetensors").sharing.unguided == 0.0
    assert settings(model).sharing.handover_noise == 0.0


def test_who_asks_for_guidance_gets_it() -> None:
    left_to_it = settings().sharing
    assert (left_to_it.unguided, left_to_it.handover_noise) == (1.0, 1.0)
    asked = settings(guidance=4.0)
    assert (asked.sharing.unguided, asked.sharing.handover_noise) == (0.0, 0.0)
    assert asked.sampling.guidance_scale == 4.0
    named = settings(guidance=4.0, unguided=0.5, handover_noise=0.5).sharing
    assert (named.unguided, named.handover_noise) == (0.5, 0.5)


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan")])
def test_noise_at_the_hand_over_must_be_a_part(noise: float) -> None:
    with pytest.raises(InputError, match="handover_noise"):
        settings(handover_noise=noise)


TREE = {"threshold": 0.2, "share_ratio": 0.3, "rungs": [[0.5, 0.4]], "max_group_size": 4}


def with_policy(tmp_path: Path, content: object, **given: Any) -> RunSettings:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(content))
    return settings(policy=file, **given)


def test_a_policy_file_goes_before_the_loras_and_options_before_it(tmp_path: Path) -> None:
    found = with_policy(tmp_path, TREE).sharing
    assert (found.threshold, found.share_ratio, found.rungs) == (0.2, 0.3, ((0.5, 0.4),))
    assert (found.parting, found.max_group_size, found.unguided) == ("tree", 4, 1.0)
    assert with_policy(tmp_path, TREE | {"parting": "together"}).sharing.parting == "together"
    assert with_policy(tmp_path, TREE, max_group_size=3).sharing.max_group_size == 3
    fixed = with_policy(tmp_path, TREE, share_ratio=0.45).sharing
    assert (fixed.share_ratio, fixed.rungs) == (0.45, ())


def test_a_fixed_split_named_nearer_ends_a_tree_from_further_away(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    model = model_with(tmp_path / "model", TREE)
    assert settings(model).sharing.rungs == ((0.5, 0.4),)
    (tmp_path / "sagediff.json").write_text(json.dumps({"share_ratio": 0.5}))
    assert settings(model, tmp_path).sharing.rungs == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rungs": [[0.5, 0.4]]},
        TREE | {"rungs": [[0.1, 0.4]]},
        TREE | {"rungs": [0.5]},
        TREE | {"rungs": "all"},
        TREE | {"parting": "slowly"},
        TREE | {"max_group_size": 0},
        {"threshold": True},
        [1],
    ],
)
def test_policy_files_that_cannot_be_are_named(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(InputError, match=r"policy\.json"):
        with_policy(tmp_path, wrong)


# -- a model of which nothing is known


def cautiously(model: str, lora: str = "", policy: Path | None = None, **given: Any) -> RunSettings:
    return resolve(ModelOptions(model, (lora,) if lora else ()), given=given, policy=policy, cautious=True)


def test_a_model_of_which_nothing_is_known_shares_cautiously() -> None:
    found = cautiously("some/hub-id")
    assert found.sharing == Sharing.merged(CAUTIOUS) and found.cautious == tuple(CAUTIOUS)
    assert (
        "`sagediff tune`" in found.note() and "`sagediff train`" in found.note() and "\n" not in found.note()
    )
    defaults = resolve(ModelOptions("some/hub-id"))  # as `bench` and `tune` have it
    assert defaults.sharing == Sharing() and defaults.note() == ""
    # less of everything that makes images differ
    ours, usual = found.sharing, Sharing()
    assert ours.threshold > usual.threshold and ours.share_ratio < usual.share_ratio
    assert ours.max_group_size <= usual.max_group_size and ours.shared_guidance is None


@pytest.mark.parametrize("name", CAUTIOUS)
def test_what_is_named_goes_before_it_field_by_field(name: str) -> None:
    value = {"threshold": 0.5, "share_ratio": 0.6, "max_group_size": 16, "shared_guidance": 1.0}[name]
    found = cautiously("some/hub-id", **{name: value})
    assert found.sharing == Sharing.merged(CAUTIOUS, {name: value})
    assert found.cautious == tuple(each for each in CAUTIOUS if each != name) and found.note()


def test_a_note_is_for_runs_that_share_and_have_something_left_to_it() -> None:
    assert cautiously("some/hub-id", share_ratio=0.0).note() == ""
    assert cautiously("some/hub-id", **CAUTIOUS).note() == ""


def test_who_has_measured_or_trained_is_not_held_back(tmp_path: Path) -> None:
    known = model_with(tmp_path / "known", {"threshold": 0.7})
    unknown = model_with(tmp_path / "unknown", {"guidance_scale": 5.0})
    told, plain = tmp_path / "told.safetensors", tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1)}, told, {RECORD_KEY: json.dumps({"share_ratio": 0.45})})
    save_file({"a": torch.zeros(1)}, plain)
    policy = tmp_path / "policy.json"
    policy.write_text('{"share_ratio": 0.5}')
    assert cautiously(known).sharing == Sharing(threshold=0.7)
    assert cautiously(unknown, str(told)).sharing == Sharing(share_ratio=0.45)
    assert cautiously(unknown, policy=policy).sharing == Sharing(share_ratio=0.5)
    assert cautiously("demo") == resolve(ModelOptions("demo"))
    for found in (cautiously(unknown), cautiously(unknown, str(plain)), cautiously(unknown, f"{told}:0")):
        assert found.sharing == Sharing.merged(CAUTIOUS) and found.note()
    assert cautiously(unknown).sampling.guidance_scale == 5.0
