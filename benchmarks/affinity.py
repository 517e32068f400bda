"""What does routing by similarity save on real replicas, against random routing and one replica that gets everything?

    OMP_NUM_THREADS=1 python benchmarks/affinity.py --replicas 2 --out FILE.json
    python benchmarks/affinity.py --table FILE.json FILE.json

The product's own fleet: Ray Serve, an engine of the built-in model with its LoRA in each replica, one thread each.
Requests are for held-out captions of the built-in world: a few often, most seldom (Zipf). A fixed number is
in flight: when one is answered the next one is sent, so that what is saved does not depend on how fast the
machine is. Every arm gets the same stream, the same seeds and fresh replicas. Saved is counted from what each image
would have taken alone, with the same guidance. The captions are few, so each is requested again and again: a large
cache soon holds them all, wherever they went; `--cache-mib` bounds it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from trajectory_cache import zipf_stream

from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter, Choice, Router, Vector
from sagediff.distributed.cluster import PoolOptions, connected
from sagediff.distributed.ray_replicas import quiet_serve
from sagediff.pipelines.loading import quiet_libraries
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.ticket import Ticket
from sagediff.serving.fleet.ray_fleet import ray_fleet
from sagediff.serving.fleet.replica_fleet import Fleet
from sagediff.serving.local_engine import ServeRequest
from sagediff.serving.metrics import Metrics


class RandomRouter:
    """Any replica, whatever it means and however busy that is."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def route(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        return Choice(self._random.choice(sorted(loads)), "anywhere")

    def remove(self, replica: int) -> None:
        pass


class Counted:
    """A router, and how many requests it sent to each replica in which way."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.sent: Counter[int] = Counter()
        self.ways: Counter[str] = Counter()

    def route(self, vector: Vector | None, loads: Mapping[int, int]) -> Choice:
        choice = self._router.route(vector, loads)
        if vector is not None:  # else it is the fleet's own question
            self.sent[choice.replica] += 1
            self.ways[choice.reason] += 1
        return choice

    def remove(self, replica: int) -> None:
        self._router.remove(replica)


@dataclass(frozen=True)
class Arm:
    """What is compared, and what came of it. `saved` is a part of the evaluations that all images take alone."""

    replicas: int
    cache_mib: float
    route: str
    seed: int
    saved: float = 0.0
    group_mean: float = 0.0
    busiest: float = 0.0
    spilled: float = 0.0
    seconds: float = 0.0


def drive(fleet: Fleet, prompts: list[str], steps: int, in_flight: int) -> list[Any]:
    """The images of all prompts, with so many in flight until they run out."""
    room, made = threading.Semaphore(in_flight), list[Ticket]()
    for number, prompt in enumerate(prompts):
        room.acquire()
        (ticket,) = fleet.submit([QueuedRequest(id=f"r{number}", prompt=prompt, num_inference_steps=steps)])
        ticket.future.add_done_callback(lambda _: room.release())
        made.append(ticket)
    return [ticket.future.result(600) for ticket in made]


def measured(arm: Arm, captions: list[str], args: argparse.Namespace) -> Arm:
    named = {} if args.threshold is None else {"threshold": args.threshold}
    settings = resolve(ModelOptions(device="cpu", dtype="float32"), SamplingOptions(args.steps), named)
    request = ServeRequest(settings, settings.sharing, None, {}, least_replicas=arm.replicas)
    config = ServeConfig.of(
        max_batch=args.max_batch, cache_mib=arm.cache_mib, affinity_guard=args.guard, max_queue=10_000
    )
    policy = AffinityPolicy(settings.sharing.threshold, round(args.guard * args.max_batch))
    router = Counted(RandomRouter(arm.seed) if arm.route == "random" else AffinityRouter(policy))
    numbers = zipf_stream(len(captions), args.requests, args.exponent, arm.seed)
    stream = [captions[number] for number in numbers]
    metrics = Metrics(lambda: 0)
    with ray_fleet(request, config, metrics, options(arm.replicas), raise_it, raise_it, router) as fleet:
        fleet.start()
        if fleet.wait_until_loaded(300) != "ready":
            raise SystemExit("the replicas are not ready")
        begun = time.monotonic()
        images = drive(fleet, stream, args.steps, args.in_flight * arm.replicas)
        seconds = time.monotonic() - begun
        fleet.stop(60)
    run, alone = sum(p.evaluations for p in images), sum(p.evaluations_alone for p in images)
    return replace(
        arm, saved=1 - run / alone, group_mean=float(np.mean([p.group_size for p in images])),
        busiest=max(router.sent.values()) / len(stream), spilled=router.ways["spilled"] / len(stream),
        seconds=seconds,
    )  # fmt: skip


def options(replicas: int) -> PoolOptions:
    return PoolOptions(replicas, cpus=0.1)


def raise_it(problem: Any) -> None:
    raise SystemExit(str(problem))


def table(arms: list[Arm]) -> str:
    """Means over seeds and their standard deviation; the ratio is of each seed's two arms."""
    lines = [
        "| replicas | trajectory cache, each | random | affinity | ratio | busiest replica, random and affinity |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    by = {(arm.replicas, arm.cache_mib, arm.route, arm.seed): arm for arm in arms}
    for replicas, cache in sorted({(arm.replicas, arm.cache_mib) for arm in arms}):
        seeds = sorted({arm.seed for arm in arms if (arm.replicas, arm.cache_mib) == (replicas, cache)})
        pairs = [
            [by[replicas, cache, route, seed] for route in ("random", "affinity")]
            for seed in seeds
            if all((replicas, cache, route, seed) in by for route in ("random", "affinity"))
        ]
        saved = np.array([[arm.saved for arm in pair] for pair in pairs]) * 100  # (seeds, 2)
        ratio = saved[:, 1] / saved[:, 0]
        busiest = np.array([[arm.busiest for arm in pair] for pair in pairs]).mean(axis=0) * 100
        words = "none" if not cache else f"{cache:g} MiB"
        cells = [f"{column.mean():.1f} ± {column.std():.1f} %" for column in saved.T]
        lines.append(
            f"| {replicas} | {words} | {cells[0]} | {cells[1]} | {ratio.mean():.2f} ± {ratio.std():.2f} "
            f"| {busiest[0]:.0f} %, {busiest[1]:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[2])
    parser.add_argument("--cache-mib", type=float, nargs="+", default=[0.0, 1.0, 256.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--requests", type=int, default=600, help="of each arm")
    parser.add_argument("--captions", type=int, default=713)
    parser.add_argument("--in-flight", type=int, default=16, help="requests, a replica")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument(
        "--threshold", type=float, help="of grouping and of routing [default: the LoRA's own]"
    )
    parser.add_argument("--guard", type=float, default=1.0, help="full waves")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--table", type=Path, nargs="+", help="measure nothing; print the table of these files"
    )
    args = parser.parse_args()
    if args.table:
        print(table([Arm(**arm) for file in args.table for arm in json.loads(file.read_text())["arms"]]))
        return
    quiet_libraries()
    quiet_serve()
    captions = held_out_captions(args.captions)
    done: list[Arm] = []
    with connected(options(max(args.replicas)), serve=True):
        for replicas in args.replicas:
            for seed in args.seeds:
                for cache in args.cache_mib:
                    for route in ("random", "affinity"):
                        arm = measured(Arm(replicas, cache, route, seed), captions, args)
                        print(arm, file=sys.stderr, flush=True)
                        done.append(arm)
                        if args.out is not None:
                            settings = {key: str(value) for key, value in vars(args).items()}
                            args.out.write_text(
                                json.dumps({"settings": settings, "arms": [asdict(a) for a in done]})
                            )
    print(table(done))


if __name__ == "__main__":
    main()
