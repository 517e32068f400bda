"""One wave on the pipeline: requests and how they run together in, images out. Knows neither threads, queues nor
retries."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.denoiser.scheduler import noise_levels_of
from sagediff.errors import StoppedError, UnsupportedPipelineError
from sagediff.plan.compatibility import group_requests
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.plan.waves import WaveTask, noise_seeds, repeats
from sagediff.prompts.embeddings import Encoder, embed_prompts
from sagediff.prompts.requests import QueuedRequest
from sagediff.sampling.reading import read_prompts
from sagediff.sampling.run import SharedRun
from sagediff.sampling.sizes import other_size
from sagediff.sampling.wave import OnStep, run_wave
from sagediff.serving.engine.cache_files import CacheKey, Entry
from sagediff.serving.engine.interrupt import interruptible
from sagediff.serving.engine.preview import previewer_of
from sagediff.serving.engine.reuse import Arrangement, CacheUse, Reuse, rows_alone
from sagediff.serving.engine.ticket import MadeImage, Ticket
from sagediff.serving.failures import Cancelled, RefusedByPipeline

_LARGE = 512 * 512  # pixels from which on a single attention may take long on a CPU


@dataclass(frozen=True)
class ModelSettings:
    """What the operator decided about sampling.

    Attributes:
        guidance_scale: where a request names none; None for the pipeline's own default.
        sharing: where a request names no guidance scale.
        guided: where it does; weights that are best without guidance may be asked for it all the same.
        encoder: what embeds prompts for grouping; None for the pipeline's own text encoder.
        across_tenants: whether sharing may cross tenants.
        micro_batch_size: most denoiser rows run at once; None for all.
        reuse: the trajectory cache; None for none.
    """

    sharing: Sharing
    guided: Sharing
    guidance_scale: float | None = None
    encoder: Encoder | None = None
    across_tenants: bool = False
    micro_batch_size: int | None = None
    reuse: CacheUse | None = None


@dataclass(frozen=True)
class WaveResult:
    """What a wave made.

    Attributes:
        images: in the order of the tickets; None for those whose clients left on the way.
        evaluations: denoiser rows run.
        evaluations_independent: rows that the tickets would have run each alone, as long as their clients stayed.
        cache_hits, cache_misses: tickets that replayed, and that found nothing to replay.
        evaluations_replayed: rows that the cache saved.
    """

    images: list[MadeImage | None]
    evaluations: int
    evaluations_independent: int
    cache_hits: int = 0
    cache_misses: int = 0
    evaluations_replayed: int = 0


class WaveRunner:
    """Runs waves on one pipeline, one at a time.

    Raises:
        UnsupportedPipelineError: noise at the hand-over is asked for, and the solver's noise levels are not known.
    """

    def __init__(self, pipe: Any, settings: ModelSettings) -> None:
        self.pipe, self.settings = pipe, settings
        self._preview = previewer_of(pipe)
        self._reuse = None if settings.reuse is None else Reuse(pipe, settings.reuse, settings.across_tenants)
        sharing, guided = settings.sharing, settings.guided
        try:
            noise_levels_of(pipe.scheduler)
        except UnsupportedPipelineError:
            if sharing.renews_all or guided.renews_all:
                raise
            sharing, guided = (replace(each, fresh_noise=0.0) for each in (sharing, guided))
        self._sharing, self._guided = sharing, guided

    def sharing(self, request: QueuedRequest) -> Sharing:
        """How a request, and with it all that may run in one call with it, shares."""
        return self._sharing if request.guidance_scale is None else self._guided

    def arrange(self, tickets: Sequence[Ticket], replay: bool = True) -> Arrangement:
        """How compatible tickets run together: who replays what, and the groups of the others.

        Runs the text encoder where two or more may share, and with a cache for everyone who may.

        Args:
            replay: False looks for nothing in the cache; what is run is kept all the same.
        """
        requests = [ticket.request for ticket in tickets]
        sharing = self.sharing(requests[0])
        reuses = self._reuses(sharing, requests[0].num_inference_steps)
        able = [i for i, request in enumerate(requests) if request.may_share]
        wanted = able if reuses or len(able) > 1 else []
        rows = self.embed([requests[i].prompt for i in wanted]) if wanted else ()
        vectors = dict(zip(wanted, rows, strict=True))
        found: dict[int, Entry] = {}
        if reuses and replay and self._reuse is not None:
            for i, vector in vectors.items():
                if entry := self._reuse.find(self._key(requests[i]), vector, tickets[i].seed):
                    found[i] = entry
        rest = [i for i in range(len(tickets)) if i not in found]
        by_prompt = {requests[i].prompt: vector for i, vector in vectors.items()}
        groups = group_requests(
            [requests[i] for i in rest],
            sharing,
            lambda texts: np.stack([by_prompt[text] for text in texts]),
            across_tenants=self.settings.across_tenants,
            # without fresh noise, which this solver may not take, they would come out as one image
            repeats_may_share=sharing.repeats_may_share and sharing.fresh_noise > 0,
            read=self._read([requests[i] for i in rest]),
        )
        return Arrangement(
            sorted([*([rest[i] for i in group] for group in groups), *([i] for i in found)]),
            found,
            {i: vector for i, vector in vectors.items() if reuses and i not in found},
            vectors,
        )

    def discard(self, arrangement: Arrangement) -> None:
        """Remove from the cache what was replayed there."""
        for entry in arrangement.replays.values():
            if self._reuse is not None:
                self._reuse.discard(entry)

    def run(
        self, tickets: Sequence[Ticket], arrangement: Arrangement, micro_batch_size: int | None
    ) -> WaveResult:
        """Sample compatible tickets once, as arranged, and keep what they ran together.

        Raises:
            Cancelled: every client has gone; the run ended where that was seen.
            RefusedByPipeline: the images are not of the size that was asked for.
            Exception: whatever the pipeline raises; then nothing is kept.
        """
        sharing, steps = self.sharing(tickets[0].request), tickets[0].request.num_inference_steps
        shared, left = sharing.shared_steps(steps), dict[int, int]()
        task = self._task(tickets, arrangement, sharing, steps)
        try:
            large = _pixels(tickets[0].request) >= _LARGE
            with interruptible(self.pipe, lambda: not all(ticket.gone for ticket in tickets), large=large):
                images, run = run_wave(
                    self.pipe,
                    task,
                    sharing,
                    guidance_scale=self.settings.guidance_scale,
                    micro_batch_size=micro_batch_size,
                    record={group[0]: shared for group in task.plan.groups if group[0] in arrangement.kept},
                    replay={i: entry.trajectory for i, entry in arrangement.replays.items()},
                    on_step=self._after_step(tickets, left),
                )
        except StoppedError as error:
            raise Cancelled("every client of the wave went away") from error
        for ticket, image in zip(tickets, images, strict=True):
            if words := other_size((ticket.request.width, ticket.request.height), image):
                raise RefusedByPipeline(words)
        self._keep(tickets, arrangement, run, task.noise_seeds, shared)
        return WaveResult(
            self._images(tickets, images, run),
            run.evaluations,
            sum(rows_alone(run.plan, left.get(i, steps)) for i in range(len(tickets))),
            len(arrangement.replays),
            len(arrangement.kept),
            sum(rows_alone(run.plan, min(shared, left.get(i, steps))) for i in arrangement.replays),
        )

    def _task(
        self, tickets: Sequence[Ticket], arrangement: Arrangement, sharing: Sharing, steps: int
    ) -> WaveTask:
        requests, own = [ticket.request for ticket in tickets], [ticket.seed for ticket in tickets]
        plan = self._plan(arrangement, sharing, steps, len(tickets))
        noise = noise_seeds(requests, own, plan.groups)
        for i, entry in arrangement.replays.items():
            noise[i] = entry.noise_seed
        # A replay cannot know whether its prompt came before, so it gets noise of its own, as equal prompts of a group
        # do; unless everyone who leaves a group gets some.
        apart = [
            again or (i in arrangement.replays and not sharing.renews_all)
            for i, again in enumerate(repeats(requests, plan.groups, self._read(requests)))
        ]
        return WaveTask(list(range(len(tickets))), list(requests), plan, noise, own, apart)

    def _plan(self, arrangement: Arrangement, sharing: Sharing, steps: int, count: int) -> SharePlan:
        vectors = None
        if sharing.rungs:
            size = next((len(vector) for vector in arrangement.vectors.values()), 1)
            vectors = np.zeros((count, size), np.float32)  # who is alone has none, and is not asked for one
            for i, vector in arrangement.vectors.items():
                vectors[i] = vector
        plan = sharing.plan_groups(arrangement.groups, steps, vectors=vectors)
        if not arrangement.replays:
            return plan
        shared = sharing.shared_steps(steps)
        return replace(
            plan, replayed_steps=tuple(shared if i in arrangement.replays else 0 for i in range(count))
        )

    def _keep(
        self,
        tickets: Sequence[Ticket],
        arrangement: Arrangement,
        run: SharedRun,
        noise: Sequence[int],
        shared: int,
    ) -> None:
        if self._reuse is None or not arrangement.kept:
            return
        recorded = run.recorded
        for group in run.plan.groups:
            if group[0] in recorded:
                key = self._key(tickets[group[0]].request)
                vectors = [arrangement.kept[i] for i in group]
                value = rows_alone(run.plan, shared)
                self._reuse.keep(key, vectors, noise[group[0]], recorded[group[0]], value)

    def _images(
        self, tickets: Sequence[Ticket], images: Sequence[Any], run: SharedRun
    ) -> list[MadeImage | None]:
        """Of every ticket; None where its client left on the way."""
        plan = run.plan
        reading = read_prompts(self.pipe, [ticket.request.prompt for ticket in tickets])
        names = {
            i: (name, len(group)) for group in plan.groups for name in [secrets.token_hex(6)] for i in group
        }
        replayed = plan.replayed_steps or (0,) * plan.num_prompts
        # not a part of `evaluations_independent`, which has guidance in every step: early guidance off is no merit of
        # sharing
        alone = float(rows_alone(plan, plan.num_steps))
        return [
            None
            if i in run.dropped
            else MadeImage(
                image,
                tickets[i].seed,
                float(plan.prompt_evaluations[i]),
                alone,
                *names[i],
                plan.branch_steps[i],
                replayed[i],
                reading.limit if i in reading.cut else None,
            )
            for i, image in enumerate(images)
        ]

    def _reuses(self, sharing: Sharing, steps: int) -> bool:
        """Whether requests that share so replay: there are steps to replay and to take alone, and a replay can be set
        apart from others of the same prompt."""
        return (
            self._reuse is not None and 0 < sharing.shared_steps(steps) < steps and sharing.sets_members_apart
        )

    def _key(self, request: QueuedRequest) -> CacheKey:
        assert self._reuse is not None
        scale = self.settings.guidance_scale if request.guidance_scale is None else request.guidance_scale
        return self._reuse.key(request, self.sharing(request), scale)

    def _after_step(self, tickets: Sequence[Ticket], left: dict[int, int]) -> OnStep:
        """What is done after each step.

        Args:
            left: filled with the number of steps after which a ticket's client was gone.
        """
        done = 0

        def step_done(run: SharedRun, tensors: Mapping[str, Any]) -> None:
            nonlocal done
            done += 1
            gone = [i for i, ticket in enumerate(tickets) if i not in left and ticket.gone]
            if gone:
                left.update(dict.fromkeys(gone, run.step))
                run.drop(gone)  # from the next step on; the run stops there when nobody is left
            wanting = [i for i, ticket in enumerate(tickets) if done in ticket.previews and i not in left]
            if wanting and self._preview is not None:
                for i, image in zip(wanting, self._preview(tensors["latents"][wanting]), strict=True):
                    tickets[i].show(tickets[i].previews.index(done), image)

        return step_done

    def _read(self, requests: Sequence[QueuedRequest]) -> list[str]:
        """What the model's text encoders read of each prompt; where it is the same, prompts are equal."""
        return read_prompts(self.pipe, [request.prompt for request in requests]).keys

    def embed(self, prompts: list[str]) -> npt.NDArray[np.float32]:
        """Prompts to unit vectors, (N, D), by which they are grouped."""
        return embed_prompts(prompts, self.pipe, self.settings.encoder).vectors


def _pixels(request: QueuedRequest) -> int:
    """Of its image; 0 for the model's own size."""
    return 0 if request.width is None or request.height is None else request.width * request.height
