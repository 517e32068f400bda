"""Ray workers against one process: equal pictures, speed, and what a kill costs.

    python benchmarks/distributed.py --folder DIR                # 512 prompts, everything
    python benchmarks/distributed.py --folder DIR --prompts 96 --parts equality speed

Every run is `sagediff generate` in a process of its own; prompts are captions of the built-in world.  A run's seconds
begin at its first picture and leave out the first wave of each worker: what loading costs a long run does not notice.
One worker has one core and one thread, two workers two; so has the run without Ray.

`faults`: the driver is killed (SIGKILL, its whole session) at a third of the pictures and resumed.  Pictures that were
there must stay as they are, no wave may be made twice but those in hand, and all must equal the run without Ray, but for
float rounding: a resumed run packs what is left into waves of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

from sagediff.builtin.world import all_captions

PARTS = ("equality", "speed", "faults")
BAR_SPEED = 1.8


def captions(count: int, seed: int) -> list[str]:
    every = [str(caption) for caption in all_captions()]
    return random.Random(seed).sample(every, count)


def command(args: argparse.Namespace, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "sagediff", "generate", "--prompts", str(args.folder / "prompts.txt"),
        "--steps", str(args.steps), "--wave-size", str(args.wave_size), "--out", str(out), *more,
    ]  # fmt: skip


def ray_options(workers: int) -> list[str]:
    return ["--ray", "local", "--workers", str(workers), "--worker-cpus", "1"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
