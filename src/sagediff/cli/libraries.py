"""Importing torch, transformers and diffusers, which is most of what a small command waits for."""

from __future__ import annotations

import sys

from sagediff.collector import importing


def import_libraries() -> None:
    """Import them without looking for garbage meanwhile. Where torch is imported already nothing is done."""
    if "torch" in sys.modules:
        return
    with importing():
        import diffusers.pipelines.pipeline_utils  # noqa: F401
        import transformers.modeling_utils  # noqa: F401
