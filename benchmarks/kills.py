"""Is anything lost or changed when a run is killed, or when two write to one folder?

Kills runs of `generate`, `generate --shard-size`, `generate` on forty rows that each ask for something else, `train`
and `tune` with SIGKILL: at moments drawn from the whole of a run, and in the middle of a write, as soon as a file
under a temporary name is seen. Each is then resumed, and its files are compared byte by byte with those of a run that
nobody disturbed. Then each command runs into one place while every other is started there: those must be refused, and
the files of the first must be those of a run alone.

    python benchmarks/kills.py --kills 30 --during-writes 10

Exit code 1 if a byte differs, or if a second run was not refused.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sagediff.cli import main as sagediff_main
from sagediff.files.atomic import is_leftover
from sagediff.files.digest import file_digest

COLORS = ("red", "blue", "green", "white")
THINGS = ("cat", "star", "cake", "heart")
PROMPTS = [f"a large {thing} at the top on a {color} background" for color in COLORS for thing in THINGS]
TIMES = {"report.json", "log.jsonl", "table.json", "table.md", "table.csv", "frontier.png"}  # hold seconds
WARM = (
    "sagediff.cli.generation", "sagediff.cli.comparing", "sagediff.cli.tuning", "sagediff.training.loop", "accelerate",
    "diffusers.optimization", "diffusers.training_utils", "matplotlib.image", "peft", "pyarrow.parquet",
    "sagediff.builtin.scenes.scene_perception", "sagediff.evaluation.plots",
)  # fmt: skip
KEPT_BETWEEN = {"checkpoints", "cells", "logs"}  # for going on, not what the run is for


@dataclass(frozen=True)
class Job:
    """A command, without where it writes; `resumes` by an option, or by itself."""

    name: str
    arguments: list[str]
    resumes: bool = True

    def command(self, place: Path, resume: bool = False) -> list[str]:
        return [*self.arguments, "--out", str(place), *(["--resume"] if resume and self.resumes else [])]


def jobs(home: Path) -> list[Job]:
    """Tiny runs of every command that writes much; `bench` is the last."""
    generate = ["generate", *PROMPTS, "--steps", "4", "--wave-size", "1"]
    train = ["train", "--data", str(_data(home)), "--steps", "8", "--rank", "2", "--train-batch-size", "4"]
    train += [
        "--threshold",
        "0.1",
        "--checkpointing-steps",
        "2",
        "--lr-warmup-steps",
        "1",
        "--report-to",
        "none",
    ]
    tune = ["tune", "--captions", "8", "--steps", "3", "--threshold", "0,0.35", "--share-ratio", "0.25,0.5"]
    bench = [
        "bench",
        "--captions",
        "6",
        "--steps",
        "2,3",
        "--share-ratio",
        "0.5",
        "--threshold",
        "0",
        "--seeds",
        "0",
    ]
    return [
        Job("generate", generate),
        Job("generate, sharded", [*generate, "--shard-size", "5"]),
        Job("generate, mixed rows", _mixed(home)),
        Job("train", train),
        Job("tune", [*tune, "--budget", "0.5", "--max-group-size", "4"], resumes=False),
        Job("bench", [*bench, "--no-lora"]),
    ]


def _mixed(home: Path) -> list[str]:
    """Forty rows of all columns: sizes, seeds, negative prompts, guidance scales, several images, ids, others."""
    lines = []
    for number in range(40):
        row: dict[str, object] = {
            "prompt": PROMPTS[number % 16],
            "id": f"sku {number}",
            "shelf": [number, None],
        }
        more: dict[int, dict[str, object]] = {
            1: {"seed": number}, 2: {"width": 32, "height": 64}, 3: {"negative_prompt": "blue"},
            4: {"guidance_scale": 3.0}, 5: {"num_images": 3},
            6: {"num_images": 2, "seed": 77, "width": 40, "height": 32},
        }  # fmt: skip
        lines.append(json.dumps(row | more.get(number % 8, {})))
    (home / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [
        "generate", "--prompts", str(home / "rows.jsonl"), "--steps", "2", "--width", "32", "--height", "32",
        "--wave-size", "8", "--format", "webp", "--file-name", "{id}-{copy}",
    ]  # fmt: skip


def _data(home: Path) -> Path:
    folder = home / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number, caption in enumerate(PROMPTS[:4]):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def start(command: Sequence[str]) -> BaseProcess:
    """A run in a process of its own, forked from this one, which has imported what takes seconds."""
    process = get_context("fork").Process(target=_run, args=(list(command),))
    process.start()
    return process


def _run(command: list[str]) -> None:
    said = os.open(os.devnull, os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os._exit(sagediff_main(command))


def finish(command: Sequence[str]) -> float:
    """Run to the end; seconds."""
    began = time.monotonic()
    process = start(command)
    process.join()
    if process.exitcode:
        raise SystemExit(f"sagediff {' '.join(command)}: exit code {process.exitcode}")
    return time.monotonic() - began


def content(place: Path) -> dict[str, str]:
    """Digests of what a run leaves, by name; of a single file, its own."""
    if place.is_file():
        return {"": file_digest(place)}
    found = {}
    for file in sorted(place.rglob("*")):
        name = file.relative_to(place)
        if file.is_file() and file.name not in TIMES and name.parts[0] not in KEPT_BETWEEN:
            found[name.as_posix()] = file_digest(file)
    return found


def leftovers(place: Path) -> list[Path]:
    """Files under temporary names, in a folder or beside a file."""
    if place.is_dir():  # os.walk passes over folders that are renamed meanwhile
        names = [
            Path(where) / name for where, folders, files in os.walk(place) for name in (*folders, *files)
        ]
    else:
        names = list(place.parent.glob(f"{place.name}.*"))
    return [path for path in names if is_leftover(path)]


def _locks(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.name.endswith(".sagediff.lock")]


def kill_at(command: Sequence[str], seconds: float) -> bool:
    """Kill after so many seconds; False if the run had ended."""
    process = start(command)
    process.join(seconds)
    return _killed(process)


def kill_in_a_write(command: Sequence[str], place: Path, skip: int) -> bool:
    """Kill at a write, after `skip` that are let pass; False if the run ended before one was met."""
    process = start(command)
    seen: set[Path] = set()
    while process.is_alive() and len(seen) <= skip:
        seen.update(leftovers(place))
        time.sleep(0.0002)
    return _killed(process)


def _killed(process: BaseProcess) -> bool:
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@dataclass
class Row:
    """What came of one job's kills."""

    job: str
    kills: int = 0
    in_writes: int = 0
    before_work: int = 0
    finished_in_part: int = 0
    equal: int = 0

    def cells(self) -> list[str]:
        return list(map(str, vars(self).values()))


def kill_and_resume(
    job: Job, home: Path, whole: dict[str, str], seconds: float, in_write: bool, rng: random.Random
) -> Row:
    """One kill of a job, and what it went on to."""
    while True:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        place = home / "place"
        if in_write:
            killed = kill_in_a_write(
                job.command(place), place, skip=rng.randrange(6) if job.name != "tune" else 0
            )
        else:
            killed = kill_at(job.command(place), rng.uniform(0.0, seconds))
        caught = bool(leftovers(place))
        if killed and (caught or not in_write):
            break
    begun = (place.exists() and bool(content(place))) or any(home.glob("*.trials.jsonl"))
    finish(job.command(place, resume=True))
    after = content(place)
    if after != whole:
        names = sorted(name for name in after.keys() | whole.keys() if after.get(name) != whole.get(name))
        print(f"{job.name}: {', '.join(names)} differ", file=sys.stderr)
    clean = not leftovers(place) and not _locks(home)
    return Row(job.name, 1, int(caught), int(not begun), int(begun), int(after == whole and clean))


def second_runs(
    job: Job, others: Sequence[Job], home: Path, whole: dict[str, str]
) -> tuple[Counter[str], bool]:
    """How the other commands end that are started where a job runs, and whether it came out as alone."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    place = home / "place"
    codes: Counter[str] = Counter()
    process = start(job.command(place))
    while not _locks(home):
        time.sleep(0.001)
    while _locks(home):  # again and again, from the first moment to the last
        for other in others:
            for resume in (False, True):
                said = io.StringIO()
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                    code = sagediff_main(other.command(place, resume))
                if not _locks(home):
                    break  # it may have ended before the other began
                refused = code == 2 and said.getvalue().count("\n") == 1
                codes["refused" if refused else f"{other.name}: {code} {said.getvalue()[-200:]}"] += 1
        time.sleep(0.1)
    process.join()
    return codes, process.exitcode == 0 and content(place) == whole


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--during-writes", type=int, default=10, help="kills that must hit a write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("kills", "pairs"), help="half of it")
    args = parser.parse_args()
    for name in WARM:
        import_module(name)
    torch.set_num_threads(1)  # what several threads leave behind does not survive a fork
    rng, home = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    every = jobs(home)
    whole: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for number, job in enumerate(every):
        place = home / f"alone-{number}" / "place"
        place.parent.mkdir()
        seconds[job.name] = finish(job.command(place))
        whole[job.name] = content(place)
        print(f"{job.name}: {len(whole[job.name])} files in {seconds[job.name]:.1f} s", file=sys.stderr)
    wrong = 0
    if args.only != "pairs":
        killed = every[:-1]
        rows = {job.name: Row(job.name) for job in killed}
        for number in range(args.kills):
            job = killed[number % len(killed)]
            in_write = _is_write(number, args.kills, args.during_writes)
            found = kill_and_resume(job, home / "killed", whole[job.name], seconds[job.name], in_write, rng)
            for name in ("kills", "in_writes", "before_work", "finished_in_part", "equal"):
                setattr(rows[job.name], name, getattr(rows[job.name], name) + getattr(found, name))
            print(f"{number + 1}/{args.kills} {found}", file=sys.stderr, flush=True)
        total = Row(
            "all", *(sum(getattr(row, name) for row in rows.values()) for name in list(vars(Row("")))[1:])
        )
        heads = ["job", "kills", "during a write", "before any work", "with work done", "resumed byte-equal"]
        print(table(heads, [row.cells() for row in [*rows.values(), total]]))
        wrong += total.kills - total.equal
    if args.only != "kills":
        lines = []
        for job in every:
            codes, as_alone = second_runs(job, every, home / "pairs", whole[job.name])
            others = ", ".join(f"{count} x {words}" for words, count in codes.items() if words != "refused")
            lines.append([job.name, str(codes["refused"]), others or "none", "yes" if as_alone else "NO"])
            wrong += sum(codes.values()) - codes["refused"] + (not as_alone)
        print(table(["first run", "second runs refused", "others", "first as if alone"], lines))
    shutil.rmtree(home)
    return int(wrong > 0)


def _is_write(number: int, kills: int, writes: int) -> bool:
    """Which of the kills are to hit a write: as many as are wanted, evenly spread."""
    return (number + 1) * writes // kills > number * writes // kills


if __name__ == "__main__":
    sys.exit(main())
