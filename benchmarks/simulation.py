"""Many replicas, simulated: what do random, round-robin and similarity routing save, and how long do requests wait?

    python benchmarks/simulation.py --prompts genai_bench.txt style_variations.txt --measure --plot FILE.png
    python benchmarks/simulation.py --prompts FILE --encoder NAME --call-seconds 0.002 --row-seconds 0.011 --seeds 0 1 2

A discrete-event simulation, not a run. Requests are prompts of the files, multiplied by templates
(`million.templated`), drawn by Zipf's law (the k-th most frequent as 1 / k^s, ranks at random), arriving as a Poisson
stream of `load` times what the workers could do without sharing, in full batches. Queues, windows and batches are
the product's own, so are the groups (`group_prompts`) and similarity routing with its guard
(`distributed.affinity`). A worker is busy with a batch for

    calls x call_seconds + rows x row_seconds

by the share plan's own arithmetic. It keeps the shared phases of its last groups (`cache`): a group whose first member
is at least as near to one of them as the threshold requires takes its shared steps over; otherwise its own are kept,
also those of a prompt alone. Groups of two or more leave guidance out while they share, and what that saves is counted
as saved too. Transfer and text encoding take no time; workers do not fail.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from million import templated

import sagediff
from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter
from sagediff.prompts.image_list import prompt_texts
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.batcher import Batcher, BatchPolicy

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
    guard: float = 1.0  # batches
    near: float | None = None  # minimum cosine similarity to a centre; None: the threshold
    zipf: float = 1.0
    seed: int = 0

    def seconds(self, shared_rows: int, requests: int) -> float:
        """How long a batch takes; shared_rows: of one shared step, 0 if all of them are taken over."""
        shared = self.call_seconds + self.row_seconds * shared_rows if shared_rows else 0.0
        own = self.call_seconds + self.row_seconds * self.rows_alone * requests
        return self.shared_steps * shared + (self.steps - self.shared_steps) * own

    @property
    def capacity(self) -> float:
        """Requests per second of one worker without sharing, in full batches."""
        rows = self.rows_alone * self.max_batch
        return self.max_batch / (self.steps * (self.call_seconds + self.row_seconds * rows))


class Worker:
    def __init__(self, setting: Setting, clock: Callable[[], float]) -> None:
        policy = BatchPolicy(setting.window, setting.max_batch, max_queue=10**9)
        self.queue = Batcher(policy, clock)
        self.running = 0  # requests of the batch that it is busy with
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


class Dealer:
    """Which worker a request goes to."""

    def __init__(self, setting: Setting, vectors: Floats) -> None:
        self.setting, self.rng, self.turn = setting, np.random.default_rng(setting.seed + 1), 0
        self.vectors, self.spilled = vectors, 0
        near = setting.threshold if setting.near is None else setting.near
        self.router = AffinityRouter(AffinityPolicy(near, round(setting.guard * setting.max_batch)))

    def choose(self, prompt: int, loads: Mapping[int, int]) -> int:
        if self.setting.route == "random":
            return int(self.rng.integers(self.setting.workers))
        if self.setting.route == "round-robin":
            self.turn += 1
            return self.turn % self.setting.workers
        choice = self.router.route(self.vectors[prompt], loads)
        self.spilled += choice.reason == "spilled"
        return choice.replica


def simulate(setting: Setting, vectors: Floats) -> dict[str, Any]:
    """Saving and latency of one setting."""
    rng = np.random.default_rng(setting.seed)
    count = min(setting.workers * setting.requests_a_worker, setting.most_requests)
    weights = 1 / np.arange(1, len(vectors) + 1) ** setting.zipf
    weights = (weights / weights.sum())[rng.permutation(len(vectors))]
    prompts = rng.choice(len(vectors), size=count, p=weights).tolist()
    arrivals = np.cumsum(rng.exponential(1 / (setting.load * setting.capacity * setting.workers), size=count))
    time_now = 0.0
    dealer = Dealer(setting, vectors)
    workers = [Worker(setting, lambda: time_now) for _ in range(setting.workers)]
    loads = dict.fromkeys(range(setting.workers), 0)  # waiting and running
    run = replayed_groups = all_groups = 0
    latencies: list[float] = []
    events: list[tuple[float, int, int]] = []  # (when, 0 done or 1 look, worker)

    def look(number: int) -> None:
        """Start a batch if one is due, else look again when it is."""
        nonlocal run, replayed_groups, all_groups
        worker = workers[number]
        if worker.running or not len(worker.queue):
            return
        if unplaced := worker.queue.unplaced():
            worker.queue.place({r.id: vectors[prompts[int(r.id)]] for r in unplaced})
        batch = worker.queue.next_wave()
        if not batch:
            due = worker.queue.wake_at()
            if due is not None and worker.wakes < due:
                worker.wakes = due
                heapq.heappush(events, (due, 1, number))
            return
        members = [prompts[int(waiting.request.id)] for waiting in batch]
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
        worker.running = len(batch)
        heapq.heappush(events, (time_now + seconds, 0, number))
        latencies.extend(time_now + seconds - waiting.arrived for waiting in batch)

    def happen() -> None:
        """The next event."""
        nonlocal time_now
        time_now, kind, number = heapq.heappop(events)
        if kind == 0:
            loads[number] -= workers[number].running
            workers[number].running = 0
        look(number)

    for request, arrival in enumerate(arrivals.tolist()):
        while events and events[0][0] <= arrival:
            happen()
        time_now = arrival
        number = dealer.choose(prompts[request], loads)
        workers[number].queue.submit(
            [QueuedRequest(id=str(request), prompt="prompt", num_inference_steps=setting.steps)]
        )
        loads[number] += 1
        look(number)
    while events:
        happen()
    independent = count * setting.steps * setting.rows_alone
    return {
        "workers": setting.workers, "route": setting.route, "requests": count, "saving": 1 - run / independent,
        "replayed_groups": replayed_groups / all_groups, "spilled": dealer.spilled / count,
        "latency_p50": float(np.quantile(latencies, 0.5)), "latency_p95": float(np.quantile(latencies, 0.95)),
        "latency_p99": float(np.quantile(latencies, 0.99)),
    }  # fmt: skip


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every figure, and the standard deviation of the saving."""
    means = {
        name: statistics.mean(run[name] for run in runs) if isinstance(value, float) else value
        for name, value in runs[0].items()
    }
    savings = [run["saving"] for run in runs]
    return means | {"saving_spread": statistics.stdev(savings) if len(savings) > 1 else 0.0}


def measured_times(repeats: int = 3) -> tuple[float, float]:
    """(seconds per call, seconds per row) of the built-in model's denoiser here: a line through the best times."""
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
        f"| {row['workers']:,} | {row['route']} | {row['saving']:.1%} ± {row['saving_spread']:.1%} "
        f"| {row['replayed_groups']:.0%} | {row['spilled']:.1%} "
        f"| {row['latency_p50']:.2f} | {row['latency_p95']:.2f} | {row['latency_p99']:.2f} |"
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
        ("threshold", float), ("cache", int), ("guard", float), ("near", float),
        ("zipf", float), ("window", float), ("max-batch", int), ("shared-steps", int),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=getattr(Setting, name.replace("-", "_")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="draw it into this file")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of JSON")
    args = parser.parse_args()
    given = [prompt for file in args.prompts for prompt in prompt_texts(file)]
    prompts = list(dict.fromkeys(templated(given, args.catalogue, 0)))
    pipe = None if args.encoder else sagediff.load_pipeline("demo")
    vectors = sagediff.embed_prompts(prompts, pipe, args.encoder).vectors
    call, row = measured_times() if args.measure else (args.call_seconds, args.row_seconds)
    base = Setting(
        1, "random", call, row, args.load, args.requests_a_worker, args.most_requests,
        threshold=args.threshold, cache=args.cache,
        guard=args.guard, near=args.near, zipf=args.zipf, window=args.window, max_batch=args.max_batch,
        shared_steps=args.shared_steps,
    )  # fmt: skip
    rows = [
        over_seeds(
            [simulate(replace(base, workers=workers, route=route, seed=seed), vectors) for seed in args.seeds]
        )
        for workers in args.workers
        for route in ROUTES
    ]
    if args.plot:
        plot(rows, args.plot)
    if args.markdown:
        print(
            f"{len(prompts)} prompts; {call * 1e3:.2f} ms per call and {row * 1e3:.2f} ms per row\n\n{markdown(rows)}"
        )
    else:
        print(
            json.dumps(
                {"prompts": len(prompts), "call_seconds": call, "row_seconds": row, "runs": rows}, indent=2
            )
        )


if __name__ == "__main__":
    main()
