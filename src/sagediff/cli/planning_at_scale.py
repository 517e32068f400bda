"""Planning in a folder (`--work`), with bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagediff.cli.job_options import ScaleOptions
from sagediff.distributed.cluster import usable_cores
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.share_plan import SharePlan
from sagediff.progress import stderr_progress
from sagediff.prompts.embeddings import text_encoder
from sagediff.prompts.requests import as_requests
from sagediff.sampling.plan_prompts import cost_basis
from sagediff.scale.cover import CoverOptions
from sagediff.scale.disk_groups import groups_at_scale


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
    as_requests(prompts)  # refuses what is no prompt
    assert scale.work is not None
    sharing, encoder, steps = (
        settings.sharing,
        settings.sampling.encoder,
        settings.sampling.num_inference_steps,
    )
    basis = cost_basis(pipe, denoiser_class, steps, guidance)
    jobs = usable_cores() if scale.jobs is None else scale.jobs
    options = CoverOptions(sharing.threshold, sharing.max_group_size, jobs=jobs)
    source = "" if encoder else f"{settings.model.name}, {settings.model.lora}"
    with _Bars() as bars:
        groups = groups_at_scale(
            prompts, text_encoder(pipe, encoder), scale.work, options, source=source, on_progress=bars.show
        )
    return basis.of(sharing.plan_groups(groups, steps))


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
