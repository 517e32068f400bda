"""A small icon set and a tiny sentence encoder in place of the packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny.icon_packages import write_icon_packages
from tiny.sentence_package import write_encoder_package

from sagediff.pipelines import sentence_encoder as sentence_encoder_module


@pytest.fixture(scope="module")
def icon_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_icon_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny encoder's package in place of the real one."""
    with pytest.MonkeyPatch.context() as patch:
        site = write_encoder_package(tmp_path_factory.mktemp("site"))
        patch.syspath_prepend(site)
        patch.setattr(sentence_encoder_module, "DIGESTS", {})
        yield site
