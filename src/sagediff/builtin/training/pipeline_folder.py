"""A trained pipeline as a folder of the repository: half precision, safetensors, and how it is best sampled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sagediff.files.atomic import writing
from sagediff.pipelines.model_source import DEFAULTS_FILE


def write_pipeline(
    pipe: Any, folder: Path, defaults: Mapping[str, Any], elsewhere: Sequence[str] = ()
) -> Path:
    """Write the folder, whole or not at all; an older one is replaced.

    Args:
        defaults: of the command line, for `sagediff.json`.
        elsewhere: parts that model_index.json names but other packages hold.
    """
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(dtype=torch.float16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing(folder) as partial:
        pipe.save_pretrained(partial, safe_serialization=True)
        for name in elsewhere:
            shutil.rmtree(partial / name)
        (partial / DEFAULTS_FILE).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
    return folder
