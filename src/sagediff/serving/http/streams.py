"""Tickets to server-sent events. Knows what ASGI's `receive` is, and no web framework."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from sagediff.serving.engine.model_thread import Preview, Ticket
from sagediff.serving.engine.wave_runner import MadeImage, preview_steps
from sagediff.serving.http.admission import Receive
from sagediff.serving.http.answers import ErrorAnswer, encode, error_answer, stream_error, stream_event
from sagediff.serving.http.request_log import RequestRecord
from sagediff.serving.http.schema import Wanted
from sagediff.serving.image_service import EngineFront
from sagediff.serving.metrics import Metrics

log = logging.getLogger(__name__)

_KEEP_ALIVE = 15.0  # seconds between comments in a silent stream, so that proxies do not close it


class ImageStream:
    """One request's images as events: those on their way, and each as it is finished.

    Args:
        each_alone: an image that failed is an event of its own and the others go on, as prompts of one request have
            nothing to do with each other. Otherwise its error ends the stream, as OpenAI's does.
    """

    def __init__(
        self,
        engine: EngineFront,
        wanted: Wanted,
        metrics: Metrics,
        record: RequestRecord,
        *,
        each_alone: bool,
    ) -> None:
        self._engine, self._wanted, self._metrics, self._record = engine, wanted, metrics, record
        self._each_alone = each_alone
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Ticket, Preview | None]] = asyncio.Queue()
        self._tickets = engine.submit(wanted.requests, wanted.partial_images, self._tell)
        self._numbers = {ticket.request.id: i for i, ticket in enumerate(self._tickets)}
        record.tickets = self._tickets
        for ticket in self._tickets:
            ticket.future.add_done_callback(partial(self._ended, ticket))

    async def lines(self, receive: Receive) -> AsyncIterator[str]:
        """Events until every image is complete or failed, or the client went away."""
        left = len(self._tickets)
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            while left:
                following = asyncio.ensure_future(self._queue.get())
                await asyncio.wait(
                    {following, gone}, timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED
                )
                if gone.done():
                    following.cancel()
                    return
                if not following.done():
                    following.cancel()
                    yield ": still at work\n\n"
                    continue
                ticket, shown = following.result()
                if shown is not None:
                    yield await self._partial(ticket, shown)
                    continue
                left -= 1
                error = ticket.future.exception()
                if error is None:
                    yield await self._complete(ticket)
                    continue
                answer = answer_of(error, self._record)
                if not self._each_alone:
                    yield stream_error(answer)
                    return
                yield stream_error(answer, {"index": self._numbers[ticket.request.id]})
        finally:
            if left and self._record.outcome == "ok":
                self._record.outcome = (
                    "client_gone"  # also where the server ended the stream before we saw it
                )
            gone.cancel()
            self._engine.cancel(self._tickets)  # changes nothing for those that are finished

    async def _partial(self, ticket: Ticket, shown: Preview) -> str:
        steps = ticket.request.num_inference_steps
        more = {
            "partial_image_index": shown.number,
            "step": preview_steps(self._wanted.partial_images, steps)[shown.number],
            "steps": steps,
        }
        return await self._event("image_generation.partial_image", ticket, shown.image, more)

    async def _complete(self, ticket: Ticket) -> str:
        made = ticket.future.result()
        more = told(made, ticket.request.num_inference_steps)
        return await self._event("image_generation.completed", ticket, made.image, more)

    async def _event(self, kind: str, ticket: Ticket, image: Any, more: dict[str, Any]) -> str:
        data = await asyncio.to_thread(encode_all, [image], self._wanted, self._metrics)
        return stream_event(kind, self._wanted, data[0], {**more, "index": self._numbers[ticket.request.id]})

    # -- from the engine's thread

    def _ended(self, ticket: Ticket, future: object) -> None:
        self._tell(ticket, None)

    def _tell(self, ticket: Ticket, shown: Preview | None) -> None:
        with suppress(RuntimeError):  # the loop ended with its stream still open: nobody misses it
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (ticket, shown))


def told(made: MadeImage, steps: int) -> dict[str, Any]:
    """What a client learns of its image beyond OpenAI's fields."""
    return {
        "seed": made.seed,
        "steps": steps,
        "shared_steps": made.shared_steps,
        "replayed_steps": made.replayed_steps,
        "group": made.group,
        "group_size": made.group_size,
        "evaluations": round(made.evaluations, 6),
        "evaluations_alone": round(made.evaluations_alone, 6),
    }


def encode_all(images: Sequence[Any], wanted: Wanted, metrics: Metrics) -> list[bytes]:
    """PIL images as files of the format asked for; takes time, so not in the loop's thread."""
    start = time.monotonic()
    files = [encode(image, wanted.output_format, wanted.compression) for image in images]
    metrics.encoded(time.monotonic() - start)
    return files


async def all_of(tickets: Sequence[Ticket]) -> list[MadeImage]:
    return list(await asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets)))


async def unless_gone(receive: Receive, work: Awaitable[list[MadeImage]]) -> list[MadeImage] | None:
    """What the work gives; None as soon as the client has gone."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        gone.cancel()
        doing.cancel()


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def answer_of(error: BaseException, record: RequestRecord) -> ErrorAnswer:
    """What a client is told of an error; what only the operator may know goes to the log, with the request's name."""
    if not isinstance(error, Exception):
        raise error
    answer = error_answer(error)
    record.outcome = answer.code
    if answer.status == 500:
        log.error("a request failed", exc_info=error.__cause__ or error, extra={"fields": {"id": record.id}})
    return answer
