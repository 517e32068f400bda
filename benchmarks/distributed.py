"""Ray workers against one process: are the images equal, how fast are they, what does a killed driver cost?

    python benchmarks/distributed.py --folder DIR                # 512 prompts, everything
    python benchmarks/distributed.py --folder DIR --prompts 96 --parts equality speed

Every run is `sagediff generate` in a process of its own; prompts are captions of the built-in world. A worker has one
core and one thread; so has the run without Ray.

Speed is images per second from the moment each worker has made a wave to the last image, by the times of the files:
loading, which does not matter in a long run, is left out. The load of the machine during each run is reported too.

`faults`: the driver alone is killed (SIGKILL) at a third of the images, and the run is resumed. Images that were
there must stay as they are. All must equal the run without Ray except for float rounding, because a resumed run packs
the rest into new waves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sagediff.builtin.scenes.world import all_scenes

PARTS = ("equality", "speed", "faults")
BAR_SPEED = 1.8
MARK = "SAGEDIFF_BENCHMARK_RUN"  # in the environment of a run and all that it starts


class Run:
    """One `sagediff generate`, from its start."""

    def __init__(self, args: argparse.Namespace, out: Path, workers: int | None, *more: str) -> None:
        ray = [] if workers is None else ["--ray", "local", "--workers", str(workers), "--worker-cpus", "1"]
        self.out, self.workers = out, workers
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.load = os.getloadavg()[0]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "sagediff", "generate", "--prompts", str(args.folder / "prompts.txt"),
                "--steps", str(args.steps), "--wave-size", str(args.wave_size), "--out", str(out), *ray, *more,
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: self.mark},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self) -> dict[str, Any]:
        _, err = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"a run ended with {self.process.returncode}:\n{err}")
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        return report

    def images(self) -> list[Path]:
        return sorted(self.out.glob("images/*.png"))

    def processes(self) -> int:
        """How many processes of this run there are."""
        count = 0
        for entry in Path("/proc").iterdir():
            try:
                count += (
                    entry.name.isdigit()
                    and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                )
            except OSError:
                continue
        return count


def rate(run: Run, wave_size: int) -> float:
    """Images a second, once every worker has made a wave."""
    times = sorted(image.stat().st_mtime for image in run.images())
    skipped = min(wave_size * (run.workers or 1), len(times) // 2)
    return (len(times) - skipped) / (times[-1] - times[skipped - 1])


def same(one: Sequence[Path], two: Sequence[Path]) -> dict[str, int]:
    """How many images are equal as files, and the largest difference of a number in the others, of 255."""
    if [image.name for image in one] != [image.name for image in two]:
        raise SystemExit("the runs have not the same images")
    equal = worst = 0
    for a, b in zip(one, two, strict=True):
        if a.read_bytes() == b.read_bytes():
            equal += 1
            continue
        x, y = (np.asarray(Image.open(file), dtype=np.int16) for file in (a, b))
        worst = max(worst, int(np.abs(x - y).max()))
    return {"images": len(one), "equal_files": equal, "largest_difference": worst}


def faults(args: argparse.Namespace, alone: Run) -> dict[str, Any]:
    out = args.folder / "killed"
    run = Run(args, out, 2)
    while len(run.images()) < args.prompts // 3:
        if run.process.poll() is not None:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.05)
    run.process.send_signal(signal.SIGKILL)
    run.process.communicate()
    before = {image: image.stat().st_mtime_ns for image in run.images()}
    killed = time.monotonic()
    while run.processes() and time.monotonic() - killed < 60:
        time.sleep(0.5)
    left, ended = run.processes(), time.monotonic() - killed
    resumed = Run(args, out, 2, "--resume")
    report = resumed.finish()
    if any(image.stat().st_mtime_ns != stamp for image, stamp in before.items()):
        raise SystemExit("an image that was there was written again")
    return {
        "there_at_the_kill": len(before), "made_after": report["images_made"],
        "processes_left_after_the_kill": left, "seconds_until_they_ended": ended,
        "evaluations_planned": report["evaluations"], "evaluations_after": report["evaluations_run"],
        **same(alone.images(), resumed.images()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the runs; must be empty")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--wave-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1, help="runs with one and with two workers, by turns")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    prompts = [scene.caption for scene in random.Random(0).sample(all_scenes(), args.prompts)]
    (args.folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    results: dict[str, Any] = {"prompts": args.prompts, "steps": args.steps, "wave_size": args.wave_size}
    alone = Run(args, args.folder / "alone", None)
    results["groups"] = alone.finish()["num_groups"]
    speeds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for repeat in range(args.repeats if {"equality", "speed"} & set(args.parts) else 0):
        for workers in (1, 2):
            run = Run(args, args.folder / f"{workers}-workers-{repeat}", workers)
            run.finish()
            speeds[workers].append({"images_a_second": rate(run, args.wave_size), "load_at_start": run.load})
            results[f"{workers}_workers_against_none"] = same(alone.images(), run.images())
    if "speed" in args.parts:
        best = {workers: max(run["images_a_second"] for run in runs) for workers, runs in speeds.items()}
        results["speed"] = {"runs": speeds, "times": best[2] / best[1], "bar": BAR_SPEED}
    if "faults" in args.parts:
        results["faults"] = faults(args, alone)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
