"""What the commands take to grow: planning in a folder (`--work`), and workers (`--ray`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagediff.cli.settings import RunSettings
from sagediff.distributed.cluster import PoolOptions, usable_cores
from sagediff.errors import InputError
from sagediff.plan.share_plan import SharePlan
from sagediff.progress import stderr_progress
from sagediff.prompts.embeddings import text_encoder
from sagediff.sampling.plan_prompts import check_prompts, cost_basis
from sagediff.scale.cover import CoverOptions
from sagediff.scale.disk_groups import groups_at_scale


@dataclass(frozen=True)
class ScaleOptions:
    """work: the folder that keeps embeddings and groups; jobs: grouping processes, None for one a usable core."""

    work: Path
    jobs: int | None


def plan_at_scale(
    prompts: Sequence[str],
    settings: RunSettings,
    scale: ScaleOptions,
    pipe: Any,
    denoiser_class: str,
    guidance: float,
) -> SharePlan:
    """The plan of many prompts; its groups are cliques as ever, a few more than the exact way finds.

    Raises:
        InputError: an empty prompt, or a work folder that belongs to other prompts or another encoder.
    """
    check_prompts(prompts)
    policy = settings.policy
    basis = cost_basis(pipe, denoiser_class, settings.num_steps, guidance)
    jobs = usable_cores() if scale.jobs is None else scale.jobs
    options = CoverOptions(policy.threshold, policy.max_group_size, jobs=jobs)
    source = "" if settings.encoder else f"{settings.model}, {settings.lora}"
    with _Bars() as bars:
        groups = groups_at_scale(
            prompts,
            text_encoder(pipe, settings.encoder),
            scale.work,
            options,
            source=source,
            on_progress=bars.show,
        )
    return basis.of(policy.plan_groups(groups, settings.num_steps))


def replica_range(text: str | None) -> tuple[int, int]:
    """The least and the most replicas that --replicas asks for.

    Raises:
        InputError: neither a number nor two with a colon.
    """
    least, _, most = ("1" if text is None else text).partition(":")
    try:
        numbers = int(least), int(most or least)
    except ValueError:
        numbers = (0, 0)
    if not 1 <= numbers[0] <= numbers[1] or (text or "").endswith(":"):
        raise InputError(
            f"--replicas takes a number from 1 up, or two as in 1:4, the lesser one first, got {text!r}"
        )
    return numbers


def pool_options(
    ray: str | None, workers: int | None, cpus: float | None, gpus: float, what: str = "worker"
) -> PoolOptions | None:
    """What --ray and its companions, which are named after `what` there are many of, ask for; None without it.

    Raises:
        InputError: one of its companions without it, or a number out of range.
    """
    if ray is None:
        if workers is not None or cpus is not None or gpus:
            raise InputError(f"--{what}s, --{what}-cpus and --{what}-gpus are for --ray; add --ray local")
        return None
    return PoolOptions(1 if workers is None else workers, None if ray == "local" else ray, cpus, gpus)


class _Bars:
    """A bar for each stage, as they begin."""

    def __init__(self) -> None:
        self._progress = stderr_progress("{task.description}")
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
