"""One training loop for every stage: schedule, progress, average of weights, checkpoints, exact resume.

It does not know what is trained: a stage passes it a module and a function from step to losses. All randomness of
step k comes from (seed, k), so a resumed run sees the same batches and the same noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sagediff.errors import InputError
from sagediff.files.atomic import sweep, writing
from sagediff.progress import stderr_progress
from sagediff.training.checkpoint import optimizer_tensors, restore_optimizer


@dataclass(frozen=True)
class LoopConfig:
    """Length, learning rate, output and device of a stage."""

    name: str
    out: Path
    steps: int
    learning_rate: float
    seed: int = 0
    warmup: float = 0.05  # part of the steps
    ema: float = 0.0  # decay of the weights' running mean; 0 keeps the last weights
    weight_decay: float = 0.01
    save_every: int = 250
    device: str = "cpu"
    resume: bool = False
    bf16: bool = False  # autocast the losses to bfloat16; see `bf16_pays`

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")

    def rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to nothing."""
        ramp = max(1, round(self.warmup * self.steps))
        return self.learning_rate * min(
            (step + 1) / ramp, max(0.0, (self.steps - step) / (self.steps - ramp + 1))
        )


def bf16_pays(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there; a CPU that lacks it in hardware is many times slower."""
    if torch.device(device).type != "cpu":
        return True
    # younger than the oldest torch that the project takes; where it cannot be asked, float32 is the safe answer
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


Model = TypeVar("Model", bound=nn.Module)
LossFunction = Callable[[int, np.random.Generator, torch.Generator], Mapping[str, Tensor]]


def train(config: LoopConfig, model: Model, losses: LossFunction) -> Model:
    """Run (or go on with) the stage; returns the module to keep, on `config.device`, in eval mode.

    `losses(step, numpy rng, torch rng)` returns named terms; their sum is minimised.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    sweep(config.out, f"{config.name}.")  # stages may be trained side by side
    model.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=True,
    )
    average = copy.deepcopy(model) if config.ema else model
    saved = nn.ModuleDict({"model": model, "average": average} if config.ema else {"model": model})
    checkpoint = config.out / f"{config.name}.checkpoint.safetensors"
    start = _restore(checkpoint, saved, optimizer) if config.resume and checkpoint.is_file() else 0

    running: dict[str, float] = {}
    model.train()
    with stderr_progress(config.name, note="{task.fields[terms]}") as progress:
        task = progress.add_task(config.name, total=config.steps, completed=start, terms="")
        for step in range(start, config.steps):
            rng = np.random.default_rng([config.seed, step])
            noise = torch.Generator(config.device).manual_seed(int(rng.integers(2**62)))
            with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
                terms = losses(step, rng, noise)
            total = torch.stack([term.float() for term in terms.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if config.ema:
                _blend(average, model, min(config.ema, (1 + step) / (10 + step)))
            for name, term in terms.items():
                value = float(term.detach())
                running[name] = value if name not in running else 0.98 * running[name] + 0.02 * value
            words = " ".join(f"{k} {v:.4f}" for k, v in running.items())
            progress.update(task, advance=1, terms=words)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                tensors = saved.state_dict() | optimizer_tensors(optimizer)
                write_tensors(checkpoint, tensors, {"step": str(step + 1)})
                if not progress.console.is_terminal:
                    progress.console.print(
                        f"{config.name} {step + 1}/{config.steps} {words}", highlight=False
                    )
    return average.eval()


@torch.no_grad()
def _blend(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, last in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(last, 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def _restore(path: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> int:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    modules.load_state_dict({name: tensors[name] for name in modules.state_dict()})
    restore_optimizer(optimizer, tensors)
    return step


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Save as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata)
