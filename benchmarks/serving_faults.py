"""Many requests and many failures: is every good request answered once and correctly?

    OMP_NUM_THREADS=1 python benchmarks/serving_faults.py --requests 1000

A server of the built-in model runs in its own process, its denoiser failing on one prompt and out of memory
beyond a few rows. Clients send good requests and ones that can never work, and some leave before their answer. After a
third of them the process is told to end (SIGTERM) while many wait, and another, with the same cache folder, takes over;
clients send again only what was refused. At the end:

- every good request must have been answered once, with as many images made as the two processes say;
- an image with a seed must be what the untouched pipeline makes from that seed (to 3 of 255: rows run in batches), and
  no two of those are alike, so no client got another's image;
- an image that may share has no such counterpart: the judge reads its four attributes, and must find them as often (to
  10 percentage points) as on the seeded ones;
- requests that cannot work get the right error;
- both processes end well, and the second one's memory is reported from its second quarter to its last.

Exits with 1 and says why if any of this fails.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import torch
from PIL import Image
from world_eval import accuracy, to_judge

from sagediff.builtin.scenes import judge_dir
from sagediff.builtin.scenes.networks import load_judge
from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.pipelines.loading import quiet_libraries
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.model_thread import Engine
from sagediff.serving.http.server import server_for
from sagediff.serving.local_engine import ServeRequest, cache_use, model_settings
from sagediff.serving.metrics import Metrics

MODEL = ModelOptions(device="cpu", dtype="float32")
POISON = "a small star at the top left on a blue background"  # the denoiser fails on it
MOST_ROWS = 6  # at once; beyond, memory is out
TOLERANCE = 3  # of 255
NEVER = {"empty": " ", "too long": "x" * 5000, "half a character": "half a pair \ud800"}
IMAGES = 'sagediff_images_total{outcome="image"}'
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


# -- the server's process


def serve(port: int, steps: int, folder: Path) -> None:
    settings = resolve(MODEL, SamplingOptions(steps), {"max_group_size": 8})
    request = ServeRequest(settings, settings.sharing, None, {})
    config = ServeConfig.of(
        port=port, window_ms=20.0, max_batch=16, cache_mib=4.0, cache_dir=folder / "cache"
    )
    sampling = replace(model_settings(request, True, False), reuse=cache_use(request, config))
    metrics = Metrics()

    def load() -> Any:
        pipe = open_pipeline(settings.model)
        make_faulty(pipe)
        return pipe

    engine = Engine(load, sampling, config.batch_policy(True), observe=metrics.wave_done)
    server_for(engine, config, metrics, steps).run()
    (folder / f"metrics-{port}.txt").write_bytes(metrics.text())


def make_faulty(pipe: Any) -> None:
    forward = pipe.unet.forward
    poison = pipe.encode_prompt(POISON, "cpu", 1, False)[0][0]

    def faulty(*args: Any, **kwargs: Any) -> Any:
        rows = kwargs["encoder_hidden_states"]
        if len(rows) > MOST_ROWS:
            raise torch.OutOfMemoryError("out of memory, as this benchmark has it")
        if any(torch.allclose(row, poison, atol=1e-4) for row in rows):
            raise ValueError("the denoiser fails on this prompt, as this benchmark has it")
        return forward(*args, **kwargs)

    pipe.unet.forward = faulty


# -- the clients


class Server(Protocol):
    """One that answers."""

    url: str

    def terminate(self) -> None: ...

    def look(self) -> None:
        """Called every so often while it is the latest."""


class ServerProcess:
    """One in a process of its own, and what is seen of its memory."""

    def __init__(self, steps: int, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, __file__, "--serve", str(self.port), "--steps", str(steps)]
        with (folder / "log.txt").open("a") as log:  # no pipe: one that nobody reads holds up who writes
            self.process = subprocess.Popen([*command, "--folder", str(folder)], stderr=log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.memory: list[float] = []  # MiB, every so often

    def look(self) -> None:
        with suppress(OSError, ValueError):  # it may have ended
            self.memory.append(resident_mib(self.process.pid))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def resident_mib(pid: int) -> float:
    """Memory of a process that is really there, MiB; 0 where the system does not say."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * PAGE / 2**20 if statm.parent.exists() else 0.0


class Clients:
    """Sends requests, and writes down what became of each.

    Args:
        start: begins a server; called for the first, and for another once the first is told to end.
        at_once: requests under way.
    """

    def __init__(self, start: Callable[[], Server], at_once: int) -> None:
        self._start, self._at_once = start, at_once
        self.servers = [start()]
        self.sent = self.refused = 0
        self.answers: dict[int, list[Any]] = {}
        self.wrong: list[str] = []
        self.left = self.late = 0  # clients that left, and those of them that were answered before
        self.codes: Counter[str] = Counter()

    async def all(self, requests: list[dict[str, Any]]) -> None:
        places = asyncio.Semaphore(self._at_once)
        watching = asyncio.ensure_future(self._watch())
        async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)) as client:
            while not await self._ready(client):
                await asyncio.sleep(0.1)

            async def one(number: int, request: dict[str, Any]) -> None:
                async with places:
                    self.sent += 1
                    if self.sent % 100 == 0:
                        print(f"{self.sent} sent", file=sys.stderr, flush=True)
                    if self.sent == len(requests) // 3:
                        self.servers[0].terminate()
                        self.servers.append(self._start())
                    await self._ask(client, number, request)

            await asyncio.gather(*(one(i, request) for i, request in enumerate(requests)))
        watching.cancel()

    async def _ready(self, client: httpx.AsyncClient) -> bool:
        with suppress(httpx.TransportError):
            return (await client.get(f"{self.servers[-1].url}/ready")).status_code == 200
        return False

    async def _watch(self) -> None:
        while True:
            self.servers[-1].look()
            await asyncio.sleep(0.1)

    async def _ask(self, client: httpx.AsyncClient, number: int, request: dict[str, Any]) -> None:
        """Until an answer, or the client's own end; again only after a refusal."""
        body, patience = json.dumps(request["body"]), request.get("patience", 300.0)
        while True:
            url = f"{self.servers[-1].url}/v1/images/generations"
            try:
                answer = await client.post(
                    url, content=body, headers={"content-type": "application/json"}, timeout=patience
                )
            except httpx.ConnectError:  # nobody listens: the first has ended and the second is not there
                self.refused += 1
            except httpx.TimeoutException:
                self.left += 1
                if request["kind"] != "leaves":
                    self.wrong.append(
                        f"request {number} ({request['kind']}) was not answered in {patience} s"
                    )
                return
            except httpx.TransportError as error:
                self.wrong.append(f"request {number} ({request['kind']}) broke off: {error!r}")
                return
            else:
                code = "" if answer.status_code == 200 else answer.json()["error"]["code"]
                if code not in ("queue_full", "loading", "draining"):
                    self._answered(number, request, answer.status_code, code, answer)
                    return
                self.refused += 1
            await asyncio.sleep(0.5)

    def _answered(self, number: int, request: dict[str, Any], status: int, code: str, answer: Any) -> None:
        kind = request["kind"]
        self.codes[code or "image"] += 1
        if kind == "leaves":
            self.late += 1
        elif (status, code) != request["wants"]:
            self.wrong.append(f"request {number} ({kind}) got {status} {code}: {answer.text[:200]}")
        elif status == 200:
            made = answer.json()["data"][0]
            image = Image.open(io.BytesIO(base64.b64decode(made["b64_json"])))
            self.answers.setdefault(number, []).append((image, made))


def requests_of(count: int, captions: list[str], chance: np.random.Generator) -> list[dict[str, Any]]:
    """A third with seeds, 45 % that may share, a tenth that cannot work, the rest leave."""
    out = []
    for number in range(count):
        draw, caption = chance.random(), captions[int(chance.zipf(1.3)) % len(captions)]
        if draw < 0.33:
            body = {"prompt": captions[int(chance.integers(len(captions)))], "seed": number}
            out.append({"kind": "seeded", "body": body, "wants": (200, "")})
        elif draw < 0.78:
            out.append({"kind": "shared", "body": {"prompt": caption}, "wants": (200, "")})
        elif draw < 0.83:
            out.append({"kind": "poison", "body": {"prompt": POISON}, "wants": (500, "image_failed")})
        elif draw < 0.88:
            prompt = NEVER[str(chance.choice(list(NEVER)))]
            out.append({"kind": "never", "body": {"prompt": prompt}, "wants": (400, "invalid_value")})
        else:
            patience = float(chance.uniform(0.05, 2.0))
            out.append({"kind": "leaves", "body": {"prompt": caption}, "patience": patience})
    return out


# -- what is said of it


def verdict(
    clients: Clients, requests: list[dict[str, Any]], made: int, pipe: Any, steps: int, worse: float = 0.1
) -> dict[str, Any]:
    """Figures; what is wrong with the answers is added to `clients.wrong`.

    Args:
        made: images that the servers say they made.
        pipe: as the servers have it.
        worse: how much more seldom the judge may find all four attributes on images that may share.
    """
    wrong = clients.wrong
    good = [i for i, request in enumerate(requests) if request["kind"] in ("seeded", "shared")]
    counts = {i: len(clients.answers.get(i, [])) for i in good}
    wrong += [f"request {i} was answered {count} times" for i, count in counts.items() if count != 1]
    answered = sum(counts.values()) + clients.late
    if not answered <= made <= answered + clients.left:
        wrong.append(f"{made} images were made for {answered} answers and {clients.left} clients that left")
    worst = check_seeded(clients, requests, pipe, steps)
    judge, right = load_judge(judge_dir()), {}
    for kind in ("seeded", "shared"):
        of_kind = [i for i in good if requests[i]["kind"] == kind and i in clients.answers]
        images = to_judge([clients.answers[i][0][0] for i in of_kind])
        right[kind] = accuracy(judge, images, [requests[i]["body"]["prompt"] for i in of_kind])["all"]
    if right["shared"] < right["seeded"] - worse:
        wrong.append(f"the judge finds {right}: images that share are not what was asked for")
    return {
        "requests": Counter(request["kind"] for request in requests), "answers": clients.codes,
        "refused and come again": clients.refused, "left": clients.left,
        "furthest from the pipeline's own, of 255": worst, "all four right": right,
        "replayed": sum(told["replayed_steps"] > 0 for i in good for _, told in clients.answers.get(i, [])),
    }  # fmt: skip


def check_seeded(clients: Clients, requests: list[dict[str, Any]], pipe: Any, steps: int) -> int:
    """The largest difference, of 255, to what the untouched pipeline makes of the same seeds."""
    seeded = [i for i in clients.answers if requests[i]["kind"] == "seeded"]
    worst, images = 0, []
    for i in seeded:
        body = requests[i]["body"]
        generator = torch.Generator().manual_seed(body["seed"])
        alone = pipe(
            body["prompt"], num_inference_steps=steps, guidance_scale=1.0, generator=generator
        ).images[0]
        image, made = clients.answers[i][0]
        gap = difference(image, alone)
        worst = max(worst, gap)
        images.append(np.asarray(image, dtype=int))
        if gap > TOLERANCE or made["seed"] != body["seed"]:
            clients.wrong.append(f"request {i} of seed {body['seed']} got an image {gap} of 255 off its own")
    stack = np.stack(images)
    for i in range(len(stack) - 1):
        if (np.abs(stack[i + 1 :] - stack[i]).reshape(len(stack) - i - 1, -1).max(axis=1) <= TOLERANCE).any():
            clients.wrong.append("two seeds have one image: the check above tells nothing")
    return worst


def difference(one: Any, two: Any) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).max())


def made_by(folder: Path) -> Counter[str]:
    """What the processes counted: outcomes, and all other counters by name."""
    found: Counter[str] = Counter()
    for path in folder.glob("metrics-*.txt"):
        found += counters(path.read_text(encoding="utf-8"))
    return found


def counters(text: str) -> Counter[str]:
    """Of Prometheus' text format, by name."""
    lines = re.findall(r'^(\w+_total(?:\{\w+="\w+"\})?) ([\d.e+]+)$', text, re.MULTILINE)
    return Counter({name: int(float(value)) for name, value in lines})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=48, help="requests under way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet_libraries()
    if args.serve is not None:
        serve(args.serve, args.steps, args.folder)
        return
    requests = requests_of(args.requests, held_out_captions(200), np.random.default_rng(args.seed))
    processes: list[ServerProcess] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def start() -> Server:
            processes.append(ServerProcess(args.steps, folder))
            return processes[-1]

        try:
            clients = Clients(start, args.at_once)
            began = time.perf_counter()
            asyncio.run(clients.all(requests))
            seconds = time.perf_counter() - began
            processes[-1].terminate()
            codes = [server.process.wait(120) for server in processes]
        finally:
            for server in processes:
                server.process.kill()
        counted = made_by(folder)
    if any(codes):
        clients.wrong.append(f"the processes ended with {codes}")
    made = counted[IMAGES]
    pipe = open_pipeline(MODEL)
    told = verdict(clients, requests, made, pipe, args.steps)
    memory = processes[-1].memory
    quarter = max(1, len(memory) // 4)
    print(json.dumps(told | {
        "seconds": seconds,
        "memory of the second process, MiB": {
            "second quarter": statistics.median(memory[quarter : 2 * quarter] or memory),
            "third quarter": statistics.median(memory[2 * quarter : 3 * quarter] or memory),
            "last quarter": statistics.median(memory[-quarter:]), "most": max(memory),
        },
        "counted": counted, "wrong": clients.wrong,
    }, indent=2))  # fmt: skip
    if clients.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
