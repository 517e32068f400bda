"""What several test modules share: the built-in pipeline, loaded once, and no network."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub; subprocesses inherit it


@pytest.fixture(scope="session")
def demo() -> Any:
    """The built-in pipeline. Tests leave it as they found it."""
    from sagediff import load_pipeline

    pipe = load_pipeline("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe
