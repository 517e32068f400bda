"""The folder of a training run: whether a run may write there. Knows no torch."""

from __future__ import annotations

from sagediff.errors import InputError
from sagediff.files.claim import is_vacant
from sagediff.training.train_config import TrainConfig

LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
CHECKPOINT = "step-"  # how the name of each begins


def check_output(config: TrainConfig) -> None:
    """Refuse a folder that this run must not write to. Writes nothing.

    Raises:
        InputError: in use without `resume`, or `resume` without a checkpoint.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, not a folder")
    used = out.is_dir() and not is_vacant(out)
    if used and not config.resume:
        raise InputError(f"--out {out} is in use; choose another folder, or --resume to go on with that run")
    if used and not any((out / CHECKPOINTS).glob(f"{CHECKPOINT}*")) and not (out / LOG).is_file():
        raise InputError(f"--resume: {out} holds no checkpoint of a training run")
