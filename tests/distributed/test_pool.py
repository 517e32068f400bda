"""Ray workers: the images of one process, and a worker that dies loses nothing but what it had in hand."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sagediff.cli import main
from sagediff.distributed.pool import MAX_TRIES, Pool, PoolOptions
from sagediff.errors import InputError, OutputError

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("ray")]  # one Ray at a time

SHAPES = ("large", "small")
THINGS = ("heart", "cat", "car", "star", "apple", "cake")
PROMPTS = [f"a {size} {thing} at the top on a red background" for size in SHAPES for thing in THINGS]


@dataclass(frozen=True)
class Squares:
    """Squares numbers, noting each beginning in a file; `dies` kills the process: once, or each time."""

    log: Path
    dies: int = -1
    always: bool = False

    def __call__(self) -> Callable[[int], int]:
        return self.square

    def square(self, number: int) -> int:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{number}\n")
        if number == self.dies and (self.always or self.begun()[number] == 1):
            os._exit(1)
        if number == -3:
            raise InputError("three is not for us")
        if number == -4:
            raise ZeroDivisionError("four")
        return number * number

    def begun(self) -> Counter[int]:
        return Counter(map(int, self.log.read_text(encoding="utf-8").split()))


def squares(make: Squares, numbers: list[int], workers: int) -> dict[int, int]:
    pool: Pool[int, int] = Pool(make, PoolOptions(workers, cpus=1))
    found = list(pool.run(lambda i: numbers[i], [abs(n) + 1 for n in numbers]))
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(tmp_path: Path, workers: int) -> None:
    make = Squares(tmp_path / "log")
    assert squares(make, list(range(9)), workers) == {i: i * i for i in range(9)}
    assert make.begun() == Counter(range(9))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_loses_only_what_it_had_in_hand(tmp_path: Path, workers: int) -> None:
    make = Squares(tmp_path / "log", dies=4)
    assert squares(make, list(range(9)), workers) == {i: i * i for i in range(9)}
    assert make.begun() == Counter([*range(9), 4])


def test_a_task_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    make = Squares(tmp_path / "log", dies=0, always=True)
    with pytest.raises(OutputError, match="workers died of task 0"):
        squares(make, [0], 1)
    assert make.begun() == {0: MAX_TRIES}


def test_what_a_task_raises_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="three is not for us"):
        squares(Squares(tmp_path / "log"), [1, -3], 1)
    with pytest.raises(OutputError, match="a worker failed: ZeroDivisionError: four"):
        squares(Squares(tmp_path / "log"), [-4], 1)


def test_a_worker_that_cannot_be_built_ends_the_run() -> None:
    def unable() -> Callable[[int], int]:
        raise RuntimeError("no such weights")

    with pytest.raises(OutputError, match=r"could not start.*no such weights"):
        list(Pool(unable, PoolOptions(1, cpus=1)).run(lambda i: i, [1]))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 workers ask for 1 CPU each, and Ray has 2"):
        list(Pool(Squares(tmp_path / "log"), PoolOptions(3, cpus=1)).run(lambda i: i, [1]))
    with pytest.raises(InputError, match="1 GPU each"):
        list(Pool(Squares(tmp_path / "log"), PoolOptions(1, cpus=1, gpus=1)).run(lambda i: i, [1]))
    with pytest.raises(InputError, match="at least one worker"):
        PoolOptions(0)


# -- images


def generate(out: Path, *more: str) -> dict[str, object]:
    rows: list[dict[str, object]] = [{"prompt": prompt, "shelf": [prompt]} for prompt in PROMPTS]
    rows[0] |= {"seed": 7, "width": 32, "height": 32}
    rows[1] |= {"guidance_scale": 3.0}
    file = out.parent / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = [
        "generate",
        "--prompts",
        str(file),
        "--steps",
        "4",
        "--wave-size",
        "2",
        "--out",
        str(out),
        *more,
    ]
    assert main(arguments) == 0
    report: dict[str, object] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [*out.glob("images/*"), out / "metadata.jsonl"]}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds its victim in Linux's /proc")
def test_workers_make_the_images_of_one_process_though_one_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL to one of two workers as soon as there is an image."""
    # over 10 s: each of three workers loads the model
    alone, out = tmp_path / "alone", tmp_path / "out"
    generate(alone)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not killed:
            if list(out.glob("images/*.png")) and (found := worker_processes()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    report = generate(out, "--ray", "local", "--workers", "2", "--worker-cpus", "1")
    thread.join()
    assert killed and "a worker died" in capsys.readouterr().err
    assert contents(out) == contents(alone)
    # what the dead worker had in hand is not counted: nobody heard of it
    assert report["evaluations_run"] == report["evaluations"] and report["images_made"] == len(PROMPTS)


def worker_processes() -> list[int]:
    """Workers that are at a task, of the Ray that this process started."""
    own = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = []
    for pid in sorted(own):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if title.startswith(b"ray::_Worker.run") and os.getpid() in (parent, grandparent):
            found.append(pid)
    return found


def test_companions_without_ray_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cat", "--workers", "2", "--out", str(tmp_path / "out")]) == 2
    assert "--ray" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
