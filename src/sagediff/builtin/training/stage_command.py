"""What the training commands of all worlds take: the options of a stage, and how chosen stages are run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from sagediff.builtin.training.stage_loop import LoopConfig, bf16_pays
from sagediff.errors import InputError, SagediffError
from sagediff.files.atomic import output_errors
from sagediff.files.claim import claimed_file


@dataclass(frozen=True)
class StageConfig:
    """Options of the command line; None takes the stage's own default."""

    out: Path
    weights: Path | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    device: str = "cpu"
    save_seconds: float = 180.0
    resume: bool = False
    bf16: bool | None = None  # None: where it pays

    @property
    def weights_folder(self) -> Path:
        return self.weights or self.out / "weights"

    @property
    def uses_bf16(self) -> bool:
        return bf16_pays(self.device) if self.bf16 is None else self.bf16

    def loop(
        self, name: str, steps: int, learning_rate: float, seed: int = 0, ema: float = 0.0,
        warmup: int | None = None, cooldown: int | None = None, **options: Any,
    ) -> LoopConfig:  # fmt: skip
        """How the stage is trained: its defaults, and what the command line says instead.

        Args:
            warmup: None takes a twentieth of the steps.
            cooldown: None takes all steps after the warm-up.
        """
        steps = self.steps if self.steps is not None else steps
        warmup = max(1, round(0.05 * steps)) if warmup is None else warmup
        return LoopConfig(
            name, self.out, steps,
            learning_rate if self.learning_rate is None else self.learning_rate,
            seed if self.seed is None else self.seed,
            warmup=warmup, cooldown=max(0, steps - warmup) if cooldown is None else cooldown, ema=ema,
            device=self.device, save_seconds=self.save_seconds, resume=self.resume, bf16=self.uses_bf16, **options,
        )  # fmt: skip


Config = TypeVar("Config", bound=StageConfig)


def stage_parser(
    prog: str, description: str | None, stages: Sequence[str], out: str
) -> argparse.ArgumentParser:
    """A parser of the options of `StageConfig`; a world adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("stage", choices=[*stages, "all"])
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the stages' outputs")
    parser.add_argument(
        "--weights", type=Path, help="assemble: where the pipeline and the judge go (default OUT/weights)"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--save-seconds", type=float, default=180.0, help="time between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, exactly")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=None, help="(default: where it pays)"
    )
    return parser


def run_stages(
    parser: argparse.ArgumentParser,
    config_type: type[Config],
    stages: Mapping[str, Callable[[Config], Path]],
    argv: Sequence[str] | None,
) -> int:
    """Run the stage that `argv` names, or all of them in turn; returns the exit code, 2 for what the user can mend."""
    args = parser.parse_args(argv)
    config = config_type(**{field.name: getattr(args, field.name) for field in fields(config_type)})
    try:
        for name in stages if args.stage == "all" else [args.stage]:
            with _claimed(config.out, name):
                print(stages[name](config), file=sys.stderr)
    except SagediffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


@contextmanager
def _claimed(out: Path, stage: str) -> Iterator[None]:
    """Inside, no other process runs that stage into the folder; other stages may run beside it."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with claimed_file(out / f"{stage}.checkpoint.safetensors"):
            yield
    finally:
        with suppress(OSError):
            out.rmdir()  # if nothing was written


def require(folder: Path, names: Sequence[str], remedy: str) -> None:
    """Raises InputError if a file or folder that a stage needs is not there."""
    for path in (folder / name for name in names):
        if not path.exists():
            raise InputError(f"{path} is missing; {remedy}")
