"""One training loop for every stage: schedule, average of weights, log, checkpoints, exact resume, clean stop.

It does not know what is trained: a stage hands it a module and a function from step to loss. All chance of
step k comes from (seed, k), so a resumed run sees the same batches and the same noise.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagediff.builtin.emoji.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast, where to.

    Attributes:
        steps: all steps of the run; a run that is resumed may be given more.
        cooldown: the last steps, in which the learning rate falls to nothing along a cosine; 0 keeps it constant.
        ema: decay of the weights' running mean, reached as 1 - 9 / (10 + step).
        save_seconds: wall-clock time between checkpoints.
        report_every: steps between calls of `report`.
    """

    out: Path
    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    warmup: int = 300
    cooldown: int = 0
    ema: float = 0.9995
    weight_decay: float = 0.01
    save_seconds: float = 180.0
    log_every: int = 50
    report_every: int = 1000
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, cosine at the end."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        behind = step - (self.steps - self.cooldown)
        if self.cooldown and behind > 0:
            rate *= 0.5 + 0.5 * math.cos(math.pi * behind / self.cooldown)
        return rate


def bf16_pays() -> bool:
    """Whether this CPU computes in bfloat16; one that lacks it is many times slower there than in float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


Losses = Callable[[nn.Module, int, np.random.Generator, torch.Generator], Mapping[str, Tensor]]
Report = Callable[[nn.Module, int], Mapping[str, float]]


class StopOnSignal:
    """While it is entered, SIGTERM and SIGINT only set `asked`, so that the step under way can end."""

    def __enter__(self) -> StopOnSignal:
        self.asked = False
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def train(
    config: LoopConfig, model: nn.Module, losses: Losses, report: Report | None = None
) -> nn.Module | None:
    """Run the stage, or go on with it where `config.out` holds its checkpoint.

    Args:
        losses: (module, step, numpy rng, torch rng) -> named terms; their sum is minimised.
        report: (averaged module, steps done) -> figures for the log.

    Returns:
        The averaged module in eval mode, or None where a signal stopped the run before its end.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    average = copy.deepcopy(model).eval()
    checkpoint = config.out / "checkpoint.safetensors"
    start = load_checkpoint(checkpoint, model, average, optimizer) if checkpoint.is_file() else 0
    model.train()
    log = _Log(config, start)
    saved = time.monotonic()
    with StopOnSignal() as stop:
        for step in range(start, config.steps):
            rng = np.random.default_rng([config.seed, step])
            noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                terms = losses(model, step, rng, noise)
            total = torch.stack([term.float() for term in terms.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            blend(average, model, min(config.ema, (1 + step) / (10 + step)))
            done = step + 1
            log.add(
                {name: float(term.detach()) for name, term in terms.items()} | {"norm": float(norm)}, done
            )
            ends = stop.asked or done == config.steps
            if report is not None and (done % config.report_every == 0 or done == config.steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                    figures = report(average, done)
                log.write({"step": done, **figures})
            if ends or time.monotonic() - saved > config.save_seconds:
                save_checkpoint(checkpoint, done, model, average, optimizer)
                saved = time.monotonic()
            if stop.asked and done < config.steps:
                return None
    return average


@torch.no_grad()
def blend(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, in place; buffers are copied."""
    means: list[Tensor] = list(average.parameters())
    lasts: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(means, lasts, 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


class _Log:
    """Appends to log.jsonl: means of the terms since the last line, samples per second and CPU time of one."""

    def __init__(self, config: LoopConfig, start: int) -> None:
        self._config, self._path = config, config.out / "log.jsonl"
        self._sums: dict[str, float] = {}
        self._since, self._clock, self._cpu = start, time.monotonic(), time.process_time()

    def add(self, terms: Mapping[str, float], done: int) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if done % self._config.log_every:
            return
        steps, now, cpu = done - self._since, time.monotonic(), time.process_time()
        means = {name: round(total / steps, 5) for name, total in self._sums.items()}
        samples = steps * self._config.batch_size
        figures = {
            "samples_per_second": round(samples / (now - self._clock), 2),
            "cpu_ms_per_sample": round((cpu - self._cpu) / samples * 1000, 2),
        }
        self.write({"step": done, "samples": done * self._config.batch_size, **means, **figures})
        self._sums, self._since, self._clock, self._cpu = {}, done, now, cpu

    def write(self, entry: Mapping[str, float]) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), **entry}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
