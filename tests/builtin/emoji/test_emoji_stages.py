"""Every stage at tiny size, from the packages to a pipeline that draws and a judge that looks, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import BertModel

from sagediff import load_pipeline
from sagediff.builtin.emoji import artwork, emoji_perception
from sagediff.builtin.emoji.artwork_folder import read_rows
from sagediff.builtin.emoji.emoji_captions import plain_caption
from sagediff.builtin.emoji.emoji_perception import EmojiPerception, held_out_captions, reference_features
from sagediff.builtin.emoji.npm_packages import FLAT_VENDORS
from sagediff.builtin.emoji.training import flow_unet, latents
from sagediff.builtin.emoji.training.__main__ import main
from sagediff.builtin.emoji.training.emoji_stage import EmojiStageConfig
from sagediff.builtin.emoji.training.latent_cache import (
    CachedBatches,
    Probe,
    caption_of,
    choose_probe,
    encode_captions,
)
from sagediff.builtin.world_judges import judge_of
from sagediff.cli import main as sagediff
from sagediff.errors import InputError
from sagediff.evaluation.perception import Judging, Perception
from sagediff.files.claim import claimed_file
from sagediff.pipelines import loading
from sagediff.pipelines.sentence_encoder import TEXT_WIDTH, load_encoder, load_tokenizer


def tiny_unet(text_width: int = TEXT_WIDTH) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(32, 32),
        cross_attention_dim=text_width, attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    out: Path

    def run(self, stage: str, *options: str) -> int:
        return main([stage, "--out", str(self.out), "--device", "cpu", *options])

    @property
    def config(self) -> EmojiStageConfig:
        return EmojiStageConfig(self.out)


@pytest.fixture(scope="module")
def trained(
    icon_packages: Path, sentence_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    """All stages run, and their weights in the built-in model's place."""
    out = Trained(tmp_path_factory.mktemp("emoji"))
    (out.out / "packages").symlink_to(icon_packages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artwork, "UNSEEN_NAMES", 1)
        patch.setattr(flow_unet, "new_unet", tiny_unet)
        patch.setitem(loading.BUILT_IN, "emoji", replace(loading.BUILT_IN["emoji"], folder=str(out.out)))
        assert out.run("data", "--vendors", *FLAT_VENDORS, "--backgrounds", "1") == 0
        assert out.run("autoencoder", "--steps", "1", "--batch-size", "4") == 0
        assert out.run("latents", "--captions", "0", "1") == 0
        assert out.run("unet", "--steps", "2", "--batch-size", "4", "--sheet-every", "2") == 0
        assert out.run("naming", "--steps", "2", "--batch-size", "8") == 0
        assert out.run("reference") == 0
        assert out.run("assemble") == 0
        yield out


def test_the_built_in_model_is_a_plain_pipeline_whose_text_encoder_comes_from_its_package(
    trained: Trained,
) -> None:
    folder = trained.out / "weights" / "pipeline"
    assert {path.name for path in folder.iterdir()} == {
        "model_index.json", "sagediff.json", "scheduler", "unet", "vae",
    }  # fmt: skip
    credits = (trained.out / "weights" / "README.md").read_text()
    assert all(name in credits for name in ("Twitter", "EmojiOne", "Google", "Microsoft", "CC-BY-4.0"))
    pipe = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is StableDiffusionPipeline and type(pipe.text_encoder) is BertModel
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    halves = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in halves.values()} == {torch.float16}
    images = pipe(["a happy robot", "a cat"], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all()


def test_generate_draws_with_it_and_plan_groups_by_its_encoder(trained: Trained, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--steps", "2", "--share-ratio", "0.5", "--threshold", "0"]
    assert sagediff(["generate", "a happy robot", "a robot, happy", "--model", "emoji", *out]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_prompts"] == 2 and report["num_groups"] == 1
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


def test_training_reads_the_states_that_the_pipeline_makes(trained: Trained) -> None:
    pipe = load_pipeline("emoji")
    positive, negative = pipe.encode_prompt(["a robot", "a cat"], "cpu", 1, True)
    states = encode_captions(load_tokenizer(), load_encoder(), ["a robot", "a cat", ""])
    assert torch.allclose(torch.cat([positive, negative[:1]]), states.float(), atol=4e-3)


def test_batches_pair_latents_with_their_captions_and_drop_some(trained: Trained) -> None:
    rows = trained.config.rows(["train"])
    folder = trained.out / "latents"
    stored = load_file(folder / "latents.safetensors")["latents"].float()
    states = [np.load(folder / f"captions-{number}.npy") for number in (0, 1)]
    drawn, text = CachedBatches(folder, rows).draw(200, np.random.default_rng(0))
    places = (stored.flatten(1)[None] - drawn.flatten(1)[:, None]).abs().sum(2).argmin(1)
    dropped = (text - torch.from_numpy(states[0][-1]).float()).abs().amax(dim=(1, 2)) == 0
    assert 0.04 < dropped.float().mean() < 0.18
    for place, state in zip(places[~dropped].tolist(), text[~dropped].numpy(), strict=True):
        assert any(np.array_equal(state, own[place]) for own in states)
    with pytest.raises(InputError, match="run the stage"):
        CachedBatches(folder, rows[:-1])


def test_captions_of_an_image_differ_between_files(trained: Trained) -> None:
    row = trained.config.rows()[0]
    assert caption_of(row, 0) == caption_of(row, 0)
    assert len({caption_of(row, number) for number in range(20)}) > 5


def test_the_probe_is_fixed_on_white_and_of_every_split(trained: Trained) -> None:
    rows = trained.config.rows()
    chosen = choose_probe(rows, "train", 5)
    assert chosen == choose_probe(rows, "train", 5) and {row.background for row in chosen} == {"white"}
    probe = Probe.read(trained.out / "latents" / "probe.safetensors")
    assert set(probe.splits) == {"train", "held_out", "unseen"}
    assert len(probe.latents) == len(probe.text) == len(probe.splits) == len(probe.captions)
    entries = [json.loads(line) for line in (trained.out / "unet.log.jsonl").read_text().splitlines()]
    assert any("probe_held_out" in entry for entry in entries)


def test_a_sheet_shows_samples_above_their_artwork(trained: Trained) -> None:
    assert [path.name for path in (trained.out / "samples").iterdir()] == ["0000002.png"]


def test_a_finished_stage_is_not_started_anew_unless_asked(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained.out / "naming.safetensors").read_bytes()
    assert trained.run("naming", "--steps", "2", "--batch-size", "8") == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert trained.run("naming", "--steps", "2", "--batch-size", "8", "--resume") == 0
    assert (trained.out / "naming.safetensors").read_bytes() == before


def test_the_decoder_learns_while_the_latents_stay(trained: Trained) -> None:
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    before = AutoencoderKL.from_pretrained(trained.out / "vae").eval()
    assert trained.run("decoder", "--steps", "2", "--batch-size", "2") == 0
    after = AutoencoderKL.from_pretrained(trained.out / "vae").eval()
    assert torch.equal(latents.encode(after, pixels), latents.encode(before, pixels))
    assert not torch.equal(after.decoder.conv_out.weight, before.decoder.conv_out.weight)


def test_the_judge_names_and_measures_images(trained: Trained) -> None:
    judge: Perception = judge_of("emoji").perception("cpu")
    assert isinstance(judge, EmojiPerception) and isinstance(judge, Judging)
    rows = [row for row in read_rows(trained.config.data, ["noto"]) if row.background == "white"][:3]
    prompts = [plain_caption(row.subject) for row in rows]
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = judge.features(images)
    assert features.shape == (3, 1280) and torch.isfinite(features).all()
    assert torch.allclose(judge.features(images[1:2]), features[1:2], atol=1e-3)
    aligned = judge.alignment(images, prompts)
    assert aligned.shape == (3,) and aligned.abs().max() <= 1 + 1e-6
    assert judge.accuracy(images, prompts)["all"].shape == (3,)
    assert judge.accuracy(images, [*prompts[:2], "no caption of the world"]) == {}
    with pytest.raises(InputError, match="64, 64"):
        judge.accuracy(images[..., :32], prompts)


def test_the_reference_is_of_held_out_pairs_in_any_order(trained: Trained) -> None:
    rows = [row for row in trained.config.rows(["held_out"]) if row.background == "white"]
    captions = held_out_captions(len(rows))
    assert captions == [row.text for row in rows] and len(captions) >= 2
    whole = reference_features()
    assert torch.equal(reference_features(captions[::-1]), whole.flip(0))
    with pytest.raises(InputError, match="held-out captions"):
        reference_features(["an unknown caption"])
    with pytest.raises(InputError, match="captions must lie in"):
        held_out_captions(len(rows) + 1)


def test_bench_measures_it_on_held_out_captions_with_its_own_judge(trained: Trained, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "bench"), "--captions", "2", "--steps", "2", "--seeds", "0"]
    assert sagediff(["bench", "--model", "emoji", "--share-ratio", "0.5", "--threshold", "0", *out]) == 0
    table = (tmp_path / "bench" / "table.md").read_text()
    assert "all right" in table and "Frechet" in table


def test_missing_weights_and_a_missing_package_are_said_before_anything_loads(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sagediff.pipelines.sentence_encoder.find_spec", lambda name: None)
    assert sagediff(["generate", "a cat", "--model", "emoji", "--out", str(tmp_path / "a")]) == 2
    assert "pip install 'sagediff[emoji]'" in capsys.readouterr().err
    empty = replace(loading.BUILT_IN["emoji"], folder=str(tmp_path / "nothing"))
    monkeypatch.setitem(loading.BUILT_IN, "emoji", empty)
    assert sagediff(["generate", "a cat", "--model", "emoji", "--out", str(tmp_path / "a")]) == 2
    complaint = capsys.readouterr().err
    assert "holds no weights of the built-in model 'emoji'" in complaint and "training all" in complaint
    assert not (tmp_path / "a").exists()
    for missing in (EmojiPerception, reference_features, lambda: emoji_perception.held_out_captions(2)):
        with pytest.raises(InputError, match="this installation holds no"):
            missing()


def test_a_stage_runs_once_at_a_time_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    with claimed_file(tmp_path / "out" / "unet.checkpoint.safetensors"):
        assert main(["unet", "--out", str(tmp_path / "out")]) == 2
        assert "is being written by another run" in capsys.readouterr().err
        assert main(["autoencoder", "--out", str(tmp_path / "out")]) == 2
        assert "run the stage `data`" in capsys.readouterr().err
    assert main(["unet", "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_stages_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage, words in (
        ("autoencoder", "stage `data`"),
        ("unet", "stage `autoencoder`"),
        ("assemble", "vae"),
    ):
        assert main([stage, "--out", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err


def test_train_teaches_it_to_share_on_the_folder_of_its_artwork(trained: Trained, tmp_path: Path) -> None:
    options = [
        "--steps",
        "1",
        "--train-batch-size",
        "4",
        "--rank",
        "2",
        "--threshold",
        "0.2",
        "--report-to",
        "none",
    ]
    data = ["--data", str(trained.config.data), "--out", str(tmp_path / "lora")]
    assert sagediff(["train", "--model", "emoji", *data, *options]) == 0
    pipe = load_pipeline("emoji")
    pipe.load_lora_weights(str(tmp_path / "lora"))
    assert pipe.get_active_adapters()
