"""Many replicas on paper: what random, round-robin and load-guarded affinity routing save, and how long it takes.

    python benchmarks/simulation.py --prompts genai_bench.txt style_variations.txt --measure --plot FILE.png
    python benchmarks/simulation.py --prompts FILE --encoder NAME --call-seconds 0.002 --row-seconds 0.011

A discrete-event simulation, not a run.  Requests are prompts of the files, made more by templates
(`million.templated`), drawn by Zipf's law (the k-th most wanted as 1 / k^s, ranks by chance), arriving as a Poisson
stream of `load` times what the workers could do without sharing, in full batches.  A worker waits up to a window for a
batch, groups it as the product does, at the text encoder's vectors, and is busy for

    calls x call_seconds + rows x row_seconds

by the share plan's own arithmetic.  It keeps the shared phases of its last groups (`cache`): a group whose first member
is at least as near to one of them as the threshold asks takes its shared steps over, else its own are kept, those of
one alone too.  Transfer and text encoding take no time; workers do not fail.

Affinity: prompts' vectors are put into centroids; centroids have homes, dealt out by how much is asked of them, several
to those that ask for more than one worker.  A request goes to the least busy home of its nearest centroid, unless that
has more than `guard` batches more waiting than the mean; then to the less busy of two others drawn by chance.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from million import templated

import sagediff
from sagediff.prompts import read_prompts

Floats = npt.NDArray[np.float32]
ROUTES = ("random", "round-robin", "affinity")


@dataclass(frozen=True)
class Setting:
    """What is simulated; times in seconds."""

    workers: int
    route: str
    call_seconds: float
    row_seconds: float
    load: float = 0.7
    requests_a_worker: int = 250
    most_requests: int = 40_000
    steps: int = 20
    shared_steps: int = 6
    threshold: float = 0.45
    rows_alone: int = 2  # guidance
    max_batch: int = 16
    window: float = 0.05
    cache: int = 64
    guard: float = 1.0
    zipf: float = 1.0
    seed: int = 0

    def seconds(self, shared_rows: int, requests: int) -> float:
        """How long a batch takes; shared_rows: of one shared step, 0 if all of them are taken over."""
        shared = self.call_seconds + self.row_seconds * shared_rows if shared_rows else 0.0
        own = self.call_seconds + self.row_seconds * self.rows_alone * requests
        return self.shared_steps * shared + (self.steps - self.shared_steps) * own

    @property
    def capacity(self) -> float:
        """Requests a second of one worker without sharing, in full batches."""
        rows = self.rows_alone * self.max_batch
        return self.max_batch / (self.steps * (self.call_seconds + self.row_seconds * rows))


class Worker:
    def __init__(self, setting: Setting) -> None:
        self.waiting: deque[tuple[float, int]] = deque()  # (arrival, prompt)
        self.busy = False
        self.wakes = -1.0  # when it looks at its queue again
        self.cache: OrderedDict[int, None] = OrderedDict()  # prompts that recorded groups began with
        self.most = setting.cache

    def replays(self, prompt: int, vectors: Floats, threshold: float) -> bool:
        """Whether a kept phase is near enough; else this one is kept."""
        if self.cache:
            kept = list(self.cache)
            near = vectors[kept] @ vectors[prompt]
            best = int(np.argmax(near))
            if near[best] >= threshold:
                self.cache.move_to_end(kept[best])
                return True
        if self.most:
            self.cache[prompt] = None
            if len(self.cache) > self.most:
                self.cache.popitem(last=False)
        return False


class Router:
    """Which worker a request goes to."""

    def __init__(self, setting: Setting, vectors: Floats, weights: npt.NDArray[np.float64]) -> None:
        self.setting, self.rng, self.turn = setting, np.random.default_rng(setting.seed + 1), 0
        self.spilled = 0
        if setting.route == "affinity":
            self.homes = _homes(vectors, weights, setting.workers, self.rng)

    def choose(self, prompt: int, waiting: npt.NDArray[np.int64], total: int) -> int:
        setting = self.setting
        if setting.route == "random":
            return int(self.rng.integers(setting.workers))
        if setting.route == "round-robin":
            self.turn += 1
            return self.turn % setting.workers
        homes = self.homes[prompt]
        home = homes[int(np.argmin(waiting[homes]))]
        if waiting[home] > total / setting.workers + setting.guard * setting.max_batch:
            self.spilled += 1
            others = self.rng.integers(setting.workers, size=2)
            return int(others[np.argmin(waiting[others])])
        return int(home)


def _homes(
    vectors: Floats, weights: npt.NDArray[np.float64], workers: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """For each prompt the homes of its centroid: as many as it asks for, each with the least asked of it so far."""
    count = min(len(vectors), max(8, 4 * workers))
    centres = vectors[rng.choice(len(vectors), count, replace=False, p=weights)]
    for _ in range(6):
        nearest = np.argmax(vectors @ centres.T, axis=1)
        for centre in np.unique(nearest):
            mean = weights[nearest == centre] @ vectors[nearest == centre]
            centres[centre] = mean / max(float(np.linalg.norm(mean)), 1e-9)
    nearest = np.argmax(vectors @ centres.T, axis=1)
    asked = np.bincount(nearest, weights, minlength=count) * workers  # in workers
    loads = [(0.0, worker) for worker in range(workers)]
    of_centre: dict[int, npt.NDArray[np.int64]] = {}
    for centre in np.argsort(-asked, kind="stable").tolist():
        homes = []
        number = min(workers, max(1, round(float(asked[centre]))))
        picked = [heapq.heappop(loads) for _ in range(number)]
        for load, worker in picked:
            homes.append(worker)
            heapq.heappush(loads, (load + float(asked[centre]) / number, worker))
        of_centre[centre] = np.array(homes)
    return [of_centre[int(centre)] for centre in nearest]


def simulate(setting: Setting, vectors: Floats) -> dict[str, Any]:
    """Saving and latency of one setting."""
    rng = np.random.default_rng(setting.seed)
    count = min(setting.workers * setting.requests_a_worker, setting.most_requests)
    weights = 1 / np.arange(1, len(vectors) + 1) ** setting.zipf
    weights = (weights / weights.sum())[rng.permutation(len(vectors))]
    prompts = rng.choice(len(vectors), size=count, p=weights)
    arrivals = np.cumsum(rng.exponential(1 / (setting.load * setting.capacity * setting.workers), size=count))
    router, workers = Router(setting, vectors, weights), [Worker(setting) for _ in range(setting.workers)]
    waiting = np.zeros(setting.workers, np.int64)
    total = run = replayed_groups = all_groups = 0
    latencies: list[float] = []
    events: list[tuple[float, int, int]] = []  # (when, 0 done or 1 look, worker)

    def look(number: int, now: float) -> None:
        """Start a batch if one is due, else look again when it is."""
        nonlocal total, run, replayed_groups, all_groups
        worker = workers[number]
        if worker.busy or not worker.waiting:
            return
        due = worker.waiting[0][0] + setting.window
        if len(worker.waiting) < setting.max_batch and now < due - 1e-12:
            if worker.wakes < due:
                worker.wakes = due
                heapq.heappush(events, (due, 1, number))
            return
        batch = [worker.waiting.popleft() for _ in range(min(setting.max_batch, len(worker.waiting)))]
        waiting[number] -= len(batch)
        total -= len(batch)
        members = [prompt for _, prompt in batch]
        groups = sagediff.group_prompts(vectors[members], setting.threshold, 8, orders=1)
        replays = shared_rows = 0
        for group in groups:
            if worker.replays(members[group[0]], vectors, setting.threshold):
                replays += 1
            else:  # while they share, groups run without negative rows; one alone runs as ever
                shared_rows += 1 if len(group) > 1 else setting.rows_alone
        seconds = setting.seconds(shared_rows, len(batch))
        run += setting.shared_steps * shared_rows
        run += (setting.steps - setting.shared_steps) * setting.rows_alone * len(batch)
        replayed_groups, all_groups = replayed_groups + replays, all_groups + len(groups)
        worker.busy = True
        heapq.heappush(events, (now + seconds, 0, number))
        latencies.extend(now + seconds - arrival for arrival, _ in batch)

    for arrival, prompt in zip(arrivals.tolist(), prompts.tolist(), strict=True):
        while events and events[0][0] <= arrival:
            now, kind, number = heapq.heappop(events)
            if kind == 0:
                workers[number].busy = False
            look(number, now)
        number = router.choose(prompt, waiting, total)
        workers[number].waiting.append((arrival, prompt))
        waiting[number] += 1
        total += 1
        look(number, arrival)
    while events:
        now, kind, number = heapq.heappop(events)
        if kind == 0:
            workers[number].busy = False
        look(number, now)
    independent = count * setting.steps * setting.rows_alone
    return {
        "workers": setting.workers, "route": setting.route, "requests": count, "saving": 1 - run / independent,
        "replayed_groups": replayed_groups / all_groups, "spilled": router.spilled / count,
        "latency_p50": float(np.quantile(latencies, 0.5)), "latency_p95": float(np.quantile(latencies, 0.95)),
        "latency_p99": float(np.quantile(latencies, 0.99)),
    }  # fmt: skip


def measured_times(repeats: int = 3) -> tuple[float, float]:
    """(seconds a call, seconds a row) of the built-in model's denoiser here: a line through the best times."""
    import torch

    pipe = sagediff.load_pipeline("demo")
    rows, seconds = [1, 2, 4, 8, 16, 32], []
    width = pipe.text_encoder.config.hidden_size
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    for count in rows:
        given = torch.randn(count, channels, size, size), torch.tensor(5), torch.randn(count, 24, width)
        best = float("inf")
        with torch.no_grad():
            for _ in range(repeats + 1):
                start = time.perf_counter()
                pipe.unet(*given)
                best = min(best, time.perf_counter() - start)
        seconds.append(best)
    row, call = np.polyfit(rows, seconds, 1)
    return max(float(call), 1e-6), float(row)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| workers | routing | evaluations saved | groups replayed | sent elsewhere | p50 s | p95 s | p99 s |",
        "| ---: | --- |" + " ---: |" * 6,
    ]
    lines += [
        f"| {row['workers']:,} | {row['route']} | {row['saving']:.1%} | {row['replayed_groups']:.0%} "
        f"| {row['spilled']:.1%} | {row['latency_p50']:.2f} | {row['latency_p95']:.2f} | {row['latency_p99']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for route in ROUTES:
        own = [row for row in rows if row["route"] == route]
        count = [row["workers"] for row in own]
        left.plot(count, [100 * row["saving"] for row in own], marker="o", label=route)
        right.plot(count, [row["latency_p95"] for row in own], marker="o", label=route)
    left.set(xscale="log", xlabel="workers", ylabel="evaluations saved, %", ylim=(0, None))
    right.set(xscale="log", xlabel="workers", ylabel="latency, 95 of 100 within, s", ylim=(0, None))
    left.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--catalogue", type=int, default=20_000, help="distinct prompts made from the files'")
    parser.add_argument("--encoder", help="a sentence-transformers model [default: the built-in model's own]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 128, 1000])
    parser.add_argument("--measure", action="store_true", help="measure the built-in model's denoiser here")
    parser.add_argument("--call-seconds", type=float, default=0.004)
    parser.add_argument("--row-seconds", type=float, default=0.004)
    for name, kind in (
        ("load", float), ("requests-a-worker", int), ("most-requests", int),
        ("threshold", float), ("cache", int), ("guard", float),
        ("zipf", float), ("window", float), ("max-batch", int), ("shared-steps", int), ("seed", int),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=getattr(Setting, name.replace("-", "_")))
    parser.add_argument("--plot", type=Path, help="draw it into this file")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of JSON")
    args = parser.parse_args()
    given = [prompt for file in args.prompts for prompt in read_prompts(file)]
    prompts = list(dict.fromkeys(templated(given, args.catalogue, args.seed)))
    pipe = None if args.encoder else sagediff.load_pipeline("demo")
    vectors = sagediff.embed_prompts(prompts, pipe, args.encoder).vectors
    call, row = measured_times() if args.measure else (args.call_seconds, args.row_seconds)
    base = Setting(
        1, "random", call, row, args.load, args.requests_a_worker, args.most_requests,
        threshold=args.threshold, cache=args.cache,
        guard=args.guard, zipf=args.zipf, window=args.window, max_batch=args.max_batch,
        shared_steps=args.shared_steps, seed=args.seed,
    )  # fmt: skip
    rows = [
        simulate(replace(base, workers=workers, route=route), vectors)
        for workers in args.workers
        for route in ROUTES
    ]
    if args.plot:
        plot(rows, args.plot)
    if args.markdown:
        print(
            f"{len(prompts)} prompts; {call * 1e3:.2f} ms a call and {row * 1e3:.2f} ms a row\n\n{markdown(rows)}"
        )
    else:
        print(
            json.dumps(
                {"prompts": len(prompts), "call_seconds": call, "row_seconds": row, "runs": rows}, indent=2
            )
        )


if __name__ == "__main__":
    main()
