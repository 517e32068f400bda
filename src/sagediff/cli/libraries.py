"""Importing torch, transformers and diffusers, which is most of what a small command waits for."""

from __future__ import annotations

import gc
import sys


def import_libraries() -> None:
    """Import them without looking for garbage meanwhile: they make a million objects that stay, and to go through them
    again and again takes a fifth of the time. Where torch is imported already nothing is done.
    """
    if "torch" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        import diffusers.pipelines.pipeline_utils  # noqa: F401
        import transformers.modeling_utils  # noqa: F401

        gc.freeze()  # what stays is not gone through later, either
    finally:
        gc.enable()
