"""Modular pipelines as folders: loaded part by part, sampled by prompts, and refused where an index leads elsewhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import prompted
from tiny.every_modular import whole

from sagediff.cli import main
from sagediff.denoiser.modular_call import with_plain_call
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.pipelines.loading import load_for_planning, load_pipeline
from sagediff.pipelines.running import offload
from sagediff.sampling.sampler import SharedSampler

PROMPTS = ["a red cat", "a blue cat", "a green bird"]


@pytest.fixture(scope="module")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a modular pipeline with a guider."""
    folder = tmp_path_factory.mktemp("ltx")
    pipe = whole(diffusers.LTXModularPipeline, prompted.ltx())
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def test_a_folder_is_loaded_and_sampled_as_any_other(ltx: Path) -> None:
    pipe = load_pipeline(ltx)
    assert type(pipe) is diffusers.LTXModularPipeline and pipe.transformer.dtype == torch.float32
    assert all(Path(pipe.get_component_spec(name).pretrained_model_name_or_path) == ltx for name in ("vae",))
    options: dict[str, Any] = {
        "num_inference_steps": 3,
        "seed": 1,
        "height": 32,
        "width": 32,
        "num_frames": 9,
    }
    alone = SharedSampler(pipe, threshold=1.0, share_ratio=0.0)(PROMPTS, guidance_scale=3.0, **options)
    shared = SharedSampler(pipe, threshold=-1.0, share_ratio=0.5)(PROMPTS, guidance_scale=3.0, **options)
    assert [len(video) for video in shared.videos] == [9, 9, 9]
    assert alone.report["evaluations_run"] == alone.plan.evaluations == 3 * 3 * 2
    assert shared.report["evaluations_run"] == shared.plan.evaluations < 3 * 3 * 2
    generators = [torch.Generator().manual_seed(seed) for seed in alone.seeds]
    pipe.guider.guidance_scale = 3.0
    del options["seed"]
    own = pipe(prompt=PROMPTS, generator=generators, output="videos", output_type="pil", **options)
    assert [[frame.tobytes() for frame in video] for video in own] == [
        [frame.tobytes() for frame in video] for video in alone.videos
    ]
    with pytest.raises(InputError, match=r"^LTXModularPipeline cannot run without guidance"):
        SharedSampler(pipe)(PROMPTS, guidance_scale=1.0, **options)
    assert pipe.guider.guidance_scale == 3.0 and pipe.guider.get_state()["enabled"]


def test_planning_loads_neither_denoiser_nor_autoencoder(ltx: Path) -> None:
    pipe, denoiser = load_for_planning(str(ltx))
    assert denoiser == "LTXVideoTransformer3DModel" and pipe.transformer is None and pipe.vae is None
    assert pipe.tokenizer is not None and pipe.text_encoder is not None and pipe.scheduler is not None


def test_a_plain_call_has_the_parameters_of_the_blocks(ltx: Path) -> None:
    pipe = with_plain_call(diffusers.LTXModularPipeline())
    assert type(pipe).__name__ == "LTXModularPipeline" and with_plain_call(pipe) is pipe
    with pytest.raises(InputError, match=r"^LTXModularPipeline takes no steps; leave it out$"):
        SharedSampler(load_pipeline(ltx))(PROMPTS, steps=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "DiffusionPipeline"}, "names no modular pipeline"),
        ({"_class_name": "OtherModularPipeline"}, "names no pipeline of diffusers"),
        ({"_blocks_class_name": "TheirBlocks"}, "'TheirBlocks' are none of diffusers; code that comes with"),
        ({"vae": ["other", "AutoencoderKLLTXVideo", {}]}, "code of others is not run"),
        (
            {"vae": ["diffusers", "AutoencoderKLLTXVideo", {"subfolder": "../vae"}]},
            "looked for in the folder of",
        ),
        ({"image_encoder": ["transformers", "CLIPVisionModel", {}]}, "lists image_encoder, which the folder"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(
    ltx: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(ltx, tmp_path / "model")
    index = tmp_path / "model" / "modular_model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(InputError, match=words):
        _ = load_for_planning(str(tmp_path / "model")), load_pipeline(tmp_path / "model")


def test_a_modular_class_that_cannot_share_is_refused_at_once(tmp_path: Path) -> None:
    index = {"_class_name": "MiniMaxH3ModularPipeline", "transformer": ["diffusers", "X", {}]}
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedPipelineError, match="it takes one prompt per call"):
        load_for_planning(str(tmp_path))


def test_a_command_samples_a_modular_pipeline(
    ltx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'sagediff[video]'")
    arguments = [*PROMPTS, "--model", str(ltx), "--size", "32x32", "--frames", "9", "--steps", "2"]
    arguments += ["--guidance", "3", "--threshold", "-1", "--share-ratio", "0.5"]
    assert main(["plan", *arguments, "--json"]) == 0, capsys.readouterr().err
    planned = json.loads(capsys.readouterr().out)
    assert main(["generate", *arguments, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["evaluations"] == planned["evaluations"] == 2 * (1 + 3)
    assert len(list((tmp_path / "videos").iterdir())) == 3


def test_what_diffusers_does_otherwise_for_modular_pipelines_is_refused(ltx: Path) -> None:
    with pytest.raises(InputError, match=r"--offload model: LTXModularPipeline is a modular pipeline"):
        offload(with_plain_call(load_pipeline(ltx)), "model", "cpu")
    if not importlib.util.find_spec("ftfy"):
        pipe = whole(diffusers.WanModularPipeline, prompted.wan())
        with pytest.raises(InputError, match=r"^WanModularPipeline needs the package ftfy"):
            SharedSampler(pipe)
