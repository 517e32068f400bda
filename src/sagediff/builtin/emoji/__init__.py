"""The built-in model `emoji`: real artwork of several vendors, captions as people write them.

It is used by the command line, by `load_pipeline("emoji")` and by tests, never by the core.
"""

from __future__ import annotations

from pathlib import Path

from sagediff.pipelines.model_source import built_in_folder

__all__ = ["naming_dir"]


def naming_dir() -> Path:
    """Folder of what only evaluation needs: the naming tower, and features of real artwork."""
    return built_in_folder("emoji") / "weights" / "judge"
