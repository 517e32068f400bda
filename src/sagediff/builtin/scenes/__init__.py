"""The built-in model `demo`: a tiny Stable Diffusion pipeline of synthetic scenes, for demos, tests and benchmarks.

It is used by the command line, by `load_pipeline("demo")` and by tests, never by the core.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["judge_dir", "lora_dir", "weights_dir"]

_HERE = Path(__file__).parent


def weights_dir() -> Path:
    """Folder of the built-in pipeline in diffusers format."""
    return _HERE / "weights" / "pipeline"


def judge_dir() -> Path:
    """Folder of the judge, for evaluation only."""
    return _HERE / "weights" / "judge"


def lora_dir() -> Path:
    """Folder of the LoRA that teaches the built-in model to share; the commands use it unless given `--no-lora`."""
    return _HERE / "lora"
