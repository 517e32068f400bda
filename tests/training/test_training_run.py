"""A training run, end to end on tiny pipelines: conditions as sampling has them, exact resume, files that load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from tiny import TOKENS, embeddings, tiny
from tiny.small_demo import with_small_networks

from sagediff.cli import main
from sagediff.denoiser.lookup import FAMILIES
from sagediff.errors import InputError, ModelError
from sagediff.files.lora_files import Lora, lora_file
from sagediff.pipelines.lora import RECORD_KEY, sharing_record, sharing_warnings
from sagediff.training.adapter import target_modules
from sagediff.training.captioned_images import load_images
from sagediff.training.latents import LatentLayout
from sagediff.training.loop import train
from sagediff.training.train_config import TrainConfig
from sagediff.training.trainable import TrainableDenoiser

CAPTIONS = [
    "a large cat at the top on a red background",
    "a large dog at the top on a red background",
    "a small tree at the left on a white background",
    "a small rose at the left on a white background",
]
SMALL: dict[str, Any] = {
    "rank": 2, "train_batch_size": 4, "threshold": 0.1, "pool_size": 4, "learning_rate": 1e-2, "lr_warmup_steps": 0,
    "checkpointing_steps": 2, "report_to": "none", "ema_decay": 0.5, "group_size": (2, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "text": text}) for n, text in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn at the end of a run took half of its time, and no test here looks at more than that it is there."""
    monkeypatch.setattr("sagediff.training.validation.STEPS", 2)


@pytest.fixture
def fresh_pipeline(small_demo: Any) -> Callable[[], Any]:
    """Makes a pipeline that may be trained, with the same weights each time."""
    return lambda: with_small_networks(small_demo)


def family_inputs(family: str) -> Any:
    """Prompts are numbers in words; the tiny pipelines take embeddings."""

    def inputs(prompts: list[str], guided: bool) -> dict[str, Any]:
        numbers = [len(prompt) for prompt in prompts]
        out: dict[str, Any] = {"prompt_embeds": embeddings(numbers, TOKENS)}
        if family != "sd":
            out["pooled_prompt_embeds"] = embeddings(numbers)
        if guided:
            out["negative_prompt_embeds"] = embeddings([-1] * len(numbers), TOKENS)
            if family != "sd":
                out["negative_pooled_prompt_embeds"] = embeddings([-1] * len(numbers))
        return out

    return inputs


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_the_denoiser_is_called_as_the_pipeline_calls_it(family: str) -> None:
    """One Euler step by hand, with recorded conditions, is the pipeline's own first step."""
    case = tiny(family, "flow" if family in ("sd3", "flux") else "ddim")
    denoiser = TrainableDenoiser(case.pipe, 16, 16, family_inputs(family))
    prompts = ["ab", "abc"]
    conditions = denoiser.conditions(prompts)
    calls: list[torch.Tensor] = []
    handle = case.denoiser.register_forward_hook(lambda module, args, output: calls.append(output[0]))
    states: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        states.append(values["latents"])
        return values

    case([2, 3], 4, torch.Generator().manual_seed(0), guided=False, callback_on_step_end=keep)
    handle.remove()
    timestep = case.pipe.scheduler.timesteps[1]
    with torch.no_grad():
        ours = denoiser(states[0], timestep.expand(2), conditions)
    torch.testing.assert_close(ours, calls[1], rtol=1e-4, atol=1e-5)
    empty = denoiser.empty_condition()
    if family == "flux":
        assert empty is None
    else:
        assert empty is not None
        name = "encoder_hidden_states"
        torch.testing.assert_close(empty[name], embeddings([-1], TOKENS))
    assert case.denoiser.forward.__self__ is case.denoiser  # nothing is left on it


def test_packing_is_fluxs() -> None:
    case = tiny("flux")
    pipe, vae = case.pipe, case.pipe.vae
    vae.register_to_config(scaling_factor=0.4, shift_factor=0.2)
    layout = LatentLayout.of(TrainableDenoiser(pipe, 16, 16, family_inputs("flux")))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = (vae.encode(images).latent_dist.mode() - 0.2) * 0.4
        ours = layout.encode(vae, images)
    theirs = pipe._pack_latents(latents, 2, 4, 8, 8)  # a private name, guarded by being compared here only
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_layers_that_get_an_adapter() -> None:
    unet = tiny("sd").denoiser
    attention, everything = (target_modules(unet, layers) for layers in ("attention", "all"))
    assert attention and set(attention) < set(everything)
    assert not any(name.startswith(("conv_in", "conv_out", "time_embedding")) for name in everything)
    projections = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for family in ("sd", "sdxl", "sd3", "flux"):
        module = tiny(family).denoiser
        ends = {
            name
            for name, part in module.named_modules()
            if name.endswith(projections) and not list(part.children())
        }
        assert set(target_modules(module, "attention")) == ends


@pytest.mark.parametrize("objective", ["sage", "standard"])
def test_resumed_equals_uninterrupted(
    data: Path, tmp_path: Path, objective: str, fresh_pipeline: Callable[[], Any]
) -> None:
    def run(out: Path, steps_before_stop: int | None = None, resume: bool = False) -> Path:
        config = TrainConfig(out, objective, steps=4, resume=resume, **SMALL)
        images = load_images(str(data))
        pipe = fresh_pipeline()
        if steps_before_stop is None:
            return train(pipe, images, config)

        class Stopped(Exception):
            pass

        import sagediff.training.loop as loop

        kept: Any = loop._Run._step

        def step(self: Any, number: int) -> Any:
            if number == steps_before_stop:
                raise Stopped
            return kept(self, number)

        loop._Run._step = step  # type: ignore[method-assign]
        try:
            with pytest.raises(Stopped):
                train(pipe, images, config)
        finally:
            loop._Run._step = kept  # type: ignore[method-assign]
        return out

    from safetensors.torch import load_file

    whole = load_file(run(tmp_path / "whole"))
    run(tmp_path / "cut", steps_before_stop=3)
    resumed = load_file(run(tmp_path / "cut", resume=True))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name].float(), tensor.float(), rtol=0, atol=1e-6)
    logs = [(tmp_path / name / "log.jsonl").read_text(encoding="utf-8") for name in ("whole", "cut")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 4
    files = [(tmp_path / name / "pytorch_lora_weights.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert not list(tmp_path.rglob("*.partial"))
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) == 2
    with pytest.raises(InputError, match=r"other settings \(learning_rate\)"):
        train(
            fresh_pipeline(), load_images(str(data)),
            TrainConfig(tmp_path / "whole", objective, steps=4, resume=True, **SMALL | {"learning_rate": 1e-3}),
        )  # fmt: skip
    again = TrainConfig(tmp_path / "whole", objective, steps=4, resume=True, **SMALL)
    other = shutil.copytree(data, tmp_path / "data")
    with Image.open(other / "3.png") as image:
        ImageOps.mirror(image).save(other / "3.png")
    with pytest.raises(InputError, match=r"other settings \(data\)"):
        train(fresh_pipeline(), load_images(str(other)), again)
    pipe = fresh_pipeline()
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.05)
    with pytest.raises(InputError, match=r"other settings \(model\)"):
        train(pipe, load_images(str(data)), again)


def test_the_command_line_trains_a_lora_that_generate_takes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lora"
    arguments = [
        "train",
        "--data",
        str(data),
        "--out",
        str(out),
        "--steps",
        "2",
        "--rank",
        "2",
        "--report-to",
        "none",
    ]
    arguments += [
        "--train-batch-size",
        "4",
        "--threshold",
        "0.1",
        "--branch-range",
        "0.2",
        "0.4",
        "--learning-rate",
    ]
    assert main([*arguments, "0.01", "--max-group-size", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["max_share_ratio"] == 0.4
    file = lora_file(out)
    record = sharing_record(file)
    assert record is not None and record["max_group_size"] == 2
    assert (out / "README.md").read_text(encoding="utf-8").startswith("---\nbase_model: demo")
    assert len(list((out / "validation").glob("*.png"))) == 1

    images = tmp_path / "images"
    code = main(
        ["generate", *CAPTIONS[:2], "--lora", str(out), "--steps", "2", "--share-ratio", "0.9", "--threshold", "0.0",
         "--out", str(images)]
    )  # fmt: skip
    words = capsys.readouterr().err
    assert code == 0 and "share ratios up to 0.4" in words
    assert len(list((images / "images").iterdir())) == 2
    assert main([*arguments, "0.01"]) == 2  # the folder is in use
    assert "in use" in capsys.readouterr().err


def trained_by_command(data: Path, out: Path, *options: str) -> int:
    return main([
        "train", "--data", str(data), "--out", str(out), "--rank", "2", "--resolution", "32", "--report-to", "none",
        *options,
    ])  # fmt: skip


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    data: Path,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sagediff.training.objective import sage_terms

    steps: list[int] = []

    def broken_from_the_third_on(*arguments: Any) -> dict[str, torch.Tensor]:
        steps.append(len(steps) + 1)
        terms = sage_terms(*arguments)
        return terms if len(steps) < 3 else terms | {"branch": terms["branch"] * float("nan")}

    monkeypatch.setattr("sagediff.training.loop.sage_terms", broken_from_the_third_on)
    out = tmp_path / "out"
    options = ["--steps", "4", "--checkpointing-steps", "2", "--train-batch-size", "2"]
    assert trained_by_command(data, out, "--model", str(small_model), *options) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        error.startswith("sagediff:")
        and "not finite at step 3 (branch nan" in error
        and "step-0000002" in error
    )
    assert steps == [1, 2, 3] and [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000002"]
    assert not list(out.glob("*.safetensors")) and not (out / "README.md").exists()
    from safetensors.torch import load_file

    kept = load_file(out / "checkpoints" / "step-0000002" / "state.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


def test_weights_that_are_not_finite_are_never_written(data: Path, tmp_path: Path) -> None:
    from sagediff.training.adapter import add_adapter, save_adapter

    pipe = tiny("sd").pipe
    add_adapter(pipe.unet, 2, "attention")
    weights = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    for value in (float("nan"), float("inf"), 1e6):  # float16 has no 1e6
        with torch.no_grad():
            weights[0].view(-1)[0] = value
        with pytest.raises(ModelError, match="not finite in float16"):
            save_adapter(pipe, pipe.unet, tmp_path, {})
        assert not list(tmp_path.iterdir())
    with torch.no_grad():
        weights[0].zero_()
    assert save_adapter(pipe, pipe.unet, tmp_path, {}).is_file()


def test_the_models_own_threshold_is_taken_and_the_card_says_what_was_trained(
    data: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        trained_by_command(data, out, "--model", str(small_model), "--steps", "2", "--learning-rate", "1e-3")
        == 0
    )
    said = capsys.readouterr()
    assert json.loads(said.out)["threshold"] == 0.45 and json.loads(said.out)["max_group_size"] == 2
    assert "a step trains on 4 images and not on 16" in said.err and "warms up over 0 of 2 steps" in said.err
    card = (out / "README.md").read_text()
    assert "2 steps of 4 images on average; 100% of the images in groups of two or more" in card
    assert "mean group size 2, largest 2" in card and '"lr_warmup_steps": 0' in card


def test_a_run_without_groups_is_warned_of_and_its_weights_say_so(
    data: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        trained_by_command(data, out, "--model", str(small_model), "--steps", "1", "--threshold", "0.99") == 0
    )
    said = capsys.readouterr()
    assert (
        "at threshold 0.99 no image is in a group of two or more, so the weights do not learn to share"
        in said.err
        and "--threshold 0." in said.err
    )
    assert json.loads(said.out)["max_share_ratio"] == 0.0 == json.loads(said.out)["share_ratio"]
    card = (out / "README.md").read_text()
    assert "Not trained to share" in card and "terms that were 0 in every step: `handover`" in card
    assert len(sharing_warnings([Lora(out)], 0.4, 2)) == 2


def test_a_pipeline_whose_solver_for_diffusion_is_set_to_flow_is_trained_at_its_levels(
    data: Path, tmp_path: Path, fresh_pipeline: Callable[[], Any]
) -> None:
    from diffusers import DPMSolverMultistepScheduler

    from sagediff.training.loop import _Run

    pipe = fresh_pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    config = TrainConfig(tmp_path / "out", resolution=32, **SMALL)
    run = _Run(pipe, load_images(str(data)), config, "demo")
    seen: list[torch.Tensor] = []
    forward = run.denoiser.module.forward

    def noted(sample: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(timestep)
        return forward(sample, timestep, *args, **kwargs)

    run.denoiser.module.forward = noted
    terms, sizes = run._terms(0)
    assert sizes == [2, 2] and all(torch.isfinite(term) for term in terms.values())
    times = torch.cat(seen)
    # the hand-over is rolled out from the first step's timestep on, told in whole numbers as the solver tells them
    assert not times.is_floating_point() and int(times.max()) == 999 and int(times.min()) >= 0


def without_convention(monkeypatch: pytest.MonkeyPatch, denoiser: str) -> None:
    """As a family of which nobody has declared how it is trained."""
    monkeypatch.setitem(FAMILIES, denoiser, replace(FAMILIES[denoiser], convention=None))


def test_a_model_that_cannot_be_trained_is_refused_by_its_index(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_convention(monkeypatch, "WanTransformer3DModel")
    model = tmp_path / "wan"
    model.mkdir()
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (model / "model_index.json").write_text(json.dumps(index))
    assert trained_by_command(data, tmp_path / "out", "--model", str(model)) == 2
    assert "WanTransformer3DModel can be sampled only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_warnings_say_what_is_beyond_the_training(tmp_path: Path) -> None:
    lora, record = tmp_path / "lora.safetensors", {"max_share_ratio": 0.5, "max_group_size": 4}
    save_file({"a": torch.zeros(1)}, lora, {RECORD_KEY: json.dumps(record)})
    assert sharing_warnings([Lora(lora)], 0.5, 4) == []
    assert len(sharing_warnings([Lora(lora)], 0.6, 5)) == 2


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--objective", "other"], "--objective"),
        (["--steps", "0"], "--steps"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--branch-range", "0.5", "0.2"], "branch_range"),
        (["--snr-gamma", "-1"], "--snr-gamma"),
        (["--data", "/no/such/folder"], "no such data"),
        (["--resolution", "63"], "resolution"),
        (["--soft-weight", "-1"], "--soft-weight"),
        (["--lr-warmup-steps", "1"], "--lr-warmup-steps must be"),
        (["--seed", "-1"], "--seed"),
        (["--train-batch-size", "1"], "--train-batch-size must be"),
        (["--max-group-size", "1"], "--max-group-size must be"),
        (["--branch-weight", "0", "--handover-weight", "0"], "weights of all terms are 0"),
        (["--full", "--rank", "4"], "--full"),
        (["--mixed-precision", "fp16"], "--mixed-precision fp16 does not work here"),
        (["--model", "/no/such/model"], "no model"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    out = tmp_path / "out"
    options = {"--data": str(data), "--out": str(out), "--steps": "1", "--report-to": "none"}
    options |= {changes[0]: changes[1]} if len(changes) == 2 else {}
    arguments = [part for pair in options.items() for part in pair]
    arguments += changes if len(changes) > 2 else []
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("sagediff:") and words in error[-1]
    assert not out.exists()


@pytest.mark.parametrize("denoiser", ["WanTransformer3DModel", "PixArtTransformer2DModel"])
def test_a_model_that_cannot_be_trained_is_refused_before_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], denoiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_convention(monkeypatch, denoiser)
    model, data = tmp_path / "model", tmp_path / "data"
    model.mkdir()
    index = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", denoiser],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (model / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "1.png")
    (data / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat"}', encoding="utf-8")
    command = ["train", "--data", str(data), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*command, "--report-to", "none"]) == 2
    shown = capsys.readouterr().err
    assert f"{denoiser} can be sampled only" in shown and shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
