"""One training loop for every stage: schedule, log, average of weights, checkpoints, exact resume, clean stop.

It does not know what is trained: a stage passes it a module and a function from step to losses. All randomness of
step k comes from (seed, k), so a resumed run sees the same batches and the same noise.
"""

from __future__ import annotations

import copy
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sagediff.errors import InputError, StoppedError, first_line
from sagediff.files.atomic import sweep, writing
from sagediff.progress import stderr_progress
from sagediff.training.checkpoint import optimizer_tensors, restore_optimizer

LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class LoopConfig:
    """Length, learning rate, output and device of a stage.

    Attributes:
        name: the stage's; its checkpoint and its log in `out` begin with it.
        steps: all steps of the run; one that is resumed may be given more.
        warmup: first steps, in which the learning rate rises.
        cooldown: last steps, in which it falls to nothing; in between it is constant.
        ema: decay of the weights' running mean, reached as 1 - 9 / (10 + step); 0 keeps the last weights.
        save_seconds: wall-clock time between checkpoints; 0 writes one after each step.
        report_every: steps between calls of `report`.
        bf16: autocast the losses to bfloat16; see `bf16_pays`.
        memory_format: of the weights; channels last is faster for convolutions alone, not beside attention.
    """

    name: str
    out: Path
    steps: int
    learning_rate: float
    seed: int = 0
    warmup: int = 0
    cooldown: int = 0
    ema: float = 0.0
    weight_decay: float = 0.01
    save_seconds: float = 180.0
    report_every: int = 1000
    device: str = "cpu"
    resume: bool = False
    bf16: bool = False
    memory_format: torch.memory_format = torch.channels_last

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")

    @property
    def checkpoint(self) -> Path:
        return self.out / f"{self.name}.checkpoint.safetensors"

    def rate(self, step: int) -> float:
        """Linear warm-up, constant, then linear decay to nothing."""
        rising = (step + 1) / max(1, self.warmup)
        return self.learning_rate * min(1.0, rising, (self.steps - step) / (self.cooldown + 1))


def bf16_pays(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU that lacks it in hardware is many times slower."""
    if torch.device(device).type != "cpu":
        return True
    # younger than the oldest torch that the project takes; where it cannot be asked, float32 is the safe answer
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


Model = TypeVar("Model", bound=nn.Module)
LossFunction = Callable[[int, np.random.Generator, torch.Generator], Mapping[str, Tensor]]
Report = Callable[[Model, int], Mapping[str, float]]


def train(
    config: LoopConfig, model: Model, losses: LossFunction, report: Report[Model] | None = None
) -> Model:
    """Run (or go on with) the stage; returns the module to keep, on `config.device`, in eval mode.

    Args:
        losses: (step, numpy rng, torch rng) -> named terms; their sum is minimised.
        report: (averaged module, steps done) -> figures for the log.

    Raises:
        InputError: a checkpoint is there and `resume` is not set, or one that is not of this stage.
        StoppedError: SIGTERM or SIGINT came; the step under way was finished and saved.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    sweep(config.out, f"{config.name}.")  # stages may be trained side by side
    model.to(config.device, memory_format=config.memory_format)  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    average = copy.deepcopy(model).eval() if config.ema else model
    saved = nn.ModuleDict({"model": model, "average": average} if config.ema else {"model": model})
    start = _restore(config, saved, optimizer)
    model.train()
    written = time.monotonic()
    with _stop_asked() as asked, stderr_progress(config.name, note="{task.fields[terms]}") as progress:
        task = progress.add_task(config.name, total=config.steps, completed=start, terms="")
        log = _Log(config, start, progress.console)
        for step in range(start, config.steps):
            rng = np.random.default_rng([config.seed, step])
            noise = torch.Generator(config.device).manual_seed(int(rng.integers(2**62)))
            with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
                terms = losses(step, rng, noise)
            total = torch.stack([term.float() for term in terms.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if config.ema:
                _blend(average, model, min(config.ema, (1 + step) / (10 + step)))
            done = step + 1
            words = log.add({name: float(term.detach()) for name, term in terms.items()}, done)
            progress.update(task, advance=1, terms=words)
            if report is not None and (done % config.report_every == 0 or done == config.steps):
                with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
                    log.write({"step": done, **report(average, done)})
            if asked or done == config.steps or time.monotonic() - written >= config.save_seconds:
                write_tensors(
                    config.checkpoint, saved.state_dict() | optimizer_tensors(optimizer), {"step": str(done)}
                )
                written = time.monotonic()
            if asked and done < config.steps:
                raise StoppedError(
                    f"stopped after step {done} of {config.steps}; the same command with --resume goes on"
                )
    return average.eval()


@contextmanager
def _stop_asked() -> Iterator[list[int]]:
    """While it is entered, SIGTERM and SIGINT only go into the list, so that the step under way can end."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: came.append(got))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def _blend(average: nn.Module, model: nn.Module, decay: float) -> None:
    means: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(means, list(model.parameters()), 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def _restore(config: LoopConfig, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> int:
    """Put the checkpoint's state into place, if there is one; returns the number of steps done."""
    path = config.checkpoint
    if not path.is_file():
        return 0
    if not config.resume:
        raise InputError(
            f"{path} is there: --resume goes on with it; to start from scratch, remove it or name another --out"
        )
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
        modules.load_state_dict({name: tensors[name] for name in modules.state_dict()})
        restore_optimizer(optimizer, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--resume: {path} is not a checkpoint of this stage: {first_line(error)}"
        ) from error
    if step > config.steps:
        raise InputError(f"--resume: {path} has done {step} steps already, more than --steps {config.steps}")
    return step


class _Log:
    """Appends to NAME.log.jsonl: means of the terms since the last line, wall-clock and CPU time per step."""

    def __init__(self, config: LoopConfig, start: int, console: Console) -> None:
        self._path = config.out / f"{config.name}.log.jsonl"
        self._name, self._steps, self._console = config.name, config.steps, console
        self._recent: dict[str, float] = {}
        self._begin(start)

    def _begin(self, done: int) -> None:
        self._sums: dict[str, float] = {}
        self._since, self._clock, self._cpu = done, time.monotonic(), time.process_time()

    def add(self, terms: Mapping[str, float], done: int) -> str:
        """Count a step; returns the running means in words."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._recent[name] = 0.98 * self._recent.get(name, value) + 0.02 * value
        words = " ".join(f"{name} {value:.4f}" for name, value in self._recent.items())
        steps = done - self._since
        if steps == LOG_EVERY or done == self._steps:
            means = {name: round(total / steps, 5) for name, total in self._sums.items()}
            spent = time.monotonic() - self._clock, time.process_time() - self._cpu
            seconds, cpu_seconds = (round(each / steps, 4) for each in spent)
            self.write({"step": done, **means, "seconds": seconds, "cpu_seconds": cpu_seconds})
            if not self._console.is_terminal:
                self._console.print(f"{self._name} {done}/{self._steps} {words}", highlight=False)
            self._begin(done)
        return words

    def write(self, entry: Mapping[str, float]) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata)
