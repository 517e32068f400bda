"""What is sharing worth to a server? Open-loop load of related prompts on loopback, with sharing against without.

    python benchmarks/serving.py --steps 20 --requests 192 --max-batch 32

Servers of the built-in model run in one process, otherwise identical: one samples every image alone, one shares within
waves, one also replays what earlier waves left, and on request one shares in waves filled by age instead of similarity.
The prompts are few (scenes times objects), so the cache soon holds them all: what it saves here is an upper bound.
Requests arrive (Poisson, for a given number) whether or not earlier ones are answered, at growing rates; all servers
get the same arrivals in turn. Reports the latencies at each rate, the highest rate that keeps the 95th percentile
under the target (between two rates by interpolation; a short burst may come faster than a server could handle in the
long run), the most images answered per second, the ratios, and the median latency of an idle server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from sagediff.builtin.scenes.world import COLORS, OBJECTS, POSITIONS, SIZES, Scene
from sagediff.pipelines.loading import quiet_libraries
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.model_thread import Engine, WaveReport
from sagediff.serving.http.server import server_for
from sagediff.serving.local_engine import ServeRequest, cache_use, model_settings
from sagediff.serving.metrics import Metrics

RATES = (0.9, 1.2, 1.5, 1.8, 2.1)  # of what the server without sharing can do
ARMS = ("independent", "shared", "cached", "by age")


def related_prompts(count: int, themes: int, chance: np.random.Generator) -> list[str]:
    """Captions of a few scenes that many ask for (Zipf), each with an object of its own."""
    scenes = [
        tuple(str(chance.choice(list(words))) for words in (SIZES, POSITIONS, COLORS)) for _ in range(themes)
    ]
    weights = 1 / np.arange(1, themes + 1)
    picks = chance.choice(themes, size=count, p=weights / weights.sum())
    return [Scene(str(chance.choice(list(OBJECTS))), *scenes[i]).caption for i in picks]


@contextmanager
def server(arm: str, steps: int, window_ms: float, max_batch: int) -> Iterator[tuple[str, list[WaveReport]]]:
    """The URL of a running server, and what it reports of its waves."""
    model = ModelOptions(device="cpu", dtype="float32")
    settings = resolve(model, SamplingOptions(steps), {"max_group_size": 8})
    request, share = ServeRequest(settings, settings.sharing, None, {}), arm != "independent"
    config = ServeConfig.of(window_ms=window_ms, max_batch=max_batch, max_queue=4096)
    reuse = cache_use(request, config) if arm == "cached" else None
    sampling = replace(model_settings(request, share, False), reuse=reuse)
    policy = replace(config.batch_policy(share), by_meaning=arm != "by age")
    reports: list[WaveReport] = []
    engine = Engine(
        lambda: open_pipeline(settings.model),
        sampling, policy, observe=reports.append,
    )  # fmt: skip
    serving = server_for(engine, config, Metrics(), steps)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=serving.run, args=([listening],), daemon=True)
        thread.start()
        while not serving.started or engine.state == "loading":
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/images/generations", reports
        serving.should_exit = True
        thread.join()


async def ask(client: httpx.AsyncClient, url: str, prompt: str) -> float:
    """Seconds until the image is there."""
    start = time.perf_counter()
    answer = await client.post(url, json={"prompt": prompt})
    answer.raise_for_status()
    return time.perf_counter() - start


async def load(url: str, prompts: list[str], arrivals: list[float]) -> list[float]:
    """Latencies of requests sent at the given seconds, whatever has been answered."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        start = time.perf_counter()

        async def one(prompt: str, at: float) -> float:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            return await ask(client, url, prompt)

        return list(await asyncio.gather(*map(one, prompts, arrivals)))


async def one_by_one(url: str, prompts: list[str]) -> float:
    """Median latency of an idle server."""
    async with httpx.AsyncClient(timeout=600) as client:
        return statistics.median([await ask(client, url, prompt) for prompt in prompts])


def highest_rate(rates: list[float], p95: list[float], target: float) -> float | None:
    """The rate at which the 95th percentile first crosses the target; None if none of the rates does, or the first."""
    for i, seconds in enumerate(p95):
        if seconds > target:
            if i == 0:
                return None
            part = (target - p95[i - 1]) / (seconds - p95[i - 1])
            return rates[i - 1] + part * (rates[i] - rates[i - 1])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--requests", type=int, default=192, help="at each rate")
    parser.add_argument("--themes", type=int, default=4, help="scenes that prompts are about")
    parser.add_argument("--window-ms", type=float, default=50.0)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--target", type=float, help="seconds, 95th percentile [default: 1.5 full waves]")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="of the capacity without sharing"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS[:3], help="independent must be one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_libraries()
    chance = np.random.default_rng(args.seed)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(server(name, args.steps, args.window_ms, args.max_batch))
            for name in args.arms
        }
        full = related_prompts(args.max_batch, args.themes, chance)
        seconds = []
        for _ in range(3):  # the first warms up
            start = time.perf_counter()
            asyncio.run(load(servers["independent"][0], full, [0.0] * len(full)))
            seconds.append(time.perf_counter() - start)
        for url, _ in servers.values():
            asyncio.run(load(url, full, [0.0] * len(full)))
        wave = min(seconds)
        capacity, target = args.max_batch / wave, args.target or 1.5 * wave
        idle = {name: asyncio.run(one_by_one(url, full[:8])) for name, (url, _) in servers.items()}
        rates = [factor * capacity for factor in args.rates]
        table: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
        for rate in rates:
            prompts = related_prompts(args.requests, args.themes, chance)
            arrivals = np.sort(chance.uniform(0, args.requests / rate, args.requests)).tolist()
            for name, (url, reports) in servers.items():
                before = len(reports)
                start = time.perf_counter()
                latencies = asyncio.run(load(url, prompts, arrivals))
                took = time.perf_counter() - start
                rows = [r.evaluations for r in reports[before:]]
                table[name].append({
                    "rate": rate, "answered_per_second": args.requests / took,
                    "p50": float(np.percentile(latencies, 50)), "p95": float(np.percentile(latencies, 95)),
                    "evaluations_a_image": sum(rows) / args.requests, "waves": len(rows),
                })  # fmt: skip
                print(name, table[name][-1], flush=True)
    found = {name: highest_rate(rates, [row["p95"] for row in rows], target) for name, rows in table.items()}
    base = found["independent"]
    ratios = {name: rate / base if rate and base else None for name, rate in found.items()}
    most = {name: max(row["answered_per_second"] for row in rows) for name, rows in table.items()}
    print(json.dumps({
        "most_answered_per_second": most,
        "ratio_of_most": {name: rate / most["independent"] for name, rate in most.items()},
        "target_p95": target, "highest_rate": found, "ratio": ratios, "idle_p50": idle, "window": args.window_ms / 1000,
        "table": table,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
