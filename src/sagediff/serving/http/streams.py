"""Tickets to server-sent events. Knows ASGI's `receive`, and no web framework."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from sagediff.serving.engine.ticket import MadeImage, Preview, Ticket
from sagediff.serving.http.admission import Receive
from sagediff.serving.http.answers import ErrorAnswer, encode, error_answer, stream_error, stream_event
from sagediff.serving.http.request_log import RequestRecord
from sagediff.serving.http.schema import ParsedBody
from sagediff.serving.image_service import ImageService
from sagediff.serving.metrics import Metrics

log = logging.getLogger(__name__)

_KEEP_ALIVE = 15.0  # seconds between comments in a silent stream, so that proxies do not close it


class ImageStream:
    """One request's images as events: previews, and each image as it is finished.

    Args:
        each_alone: an image that failed is an event of its own and the others go on, as the prompts of one request
            are independent. Otherwise its error ends the stream, as OpenAI's does.
    """

    def __init__(
        self,
        engine: ImageService,
        body: ParsedBody,
        metrics: Metrics,
        record: RequestRecord,
        *,
        each_alone: bool,
    ) -> None:
        self._engine, self._body, self._metrics, self._record = engine, body, metrics, record
        self._each_alone = each_alone
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Ticket, Preview | Future[MadeImage]]] = asyncio.Queue()
        self._tickets = engine.submit(body.requests, body.partial_images, self._put)
        self._numbers = {ticket.request.id: i for i, ticket in enumerate(self._tickets)}
        record.tickets = self._tickets
        for ticket in self._tickets:
            ticket.future.add_done_callback(partial(self._put, ticket))

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
                ticket, event = following.result()
                if isinstance(event, Preview):
                    yield await self._partial(ticket, event)
                    continue
                left -= 1
                error = ticket.future.exception()
                if error is None:
                    yield await self._complete(ticket)
                    continue
                answer = answer_for(error, self._record)
                if not self._each_alone:
                    yield stream_error(answer)
                    return
                yield stream_error(answer, {"index": self._numbers[ticket.request.id]})
        finally:
            # also where the server ended the stream before we noticed
            if left and self._record.outcome == "ok":
                self._record.outcome = "client_gone"
            gone.cancel()
            self._engine.cancel(self._tickets)  # changes nothing for those that are finished

    async def _partial(self, ticket: Ticket, preview: Preview) -> str:
        more = {
            "partial_image_index": preview.number,
            "step": ticket.previews[preview.number],
            "steps": ticket.request.num_inference_steps,
        }
        return await self._event("image_generation.partial_image", ticket, preview.image, more)

    async def _complete(self, ticket: Ticket) -> str:
        made = ticket.future.result()
        more = sampling_fields(made, ticket.request.num_inference_steps)
        return await self._event("image_generation.completed", ticket, made.image, more, made)

    async def _event(
        self, kind: str, ticket: Ticket, image: Any, more: dict[str, Any], made: MadeImage | None = None
    ) -> str:
        data = await asyncio.to_thread(encode_all, [image], self._body, self._metrics)
        more = {**more, "index": self._numbers[ticket.request.id]}
        return stream_event(kind, self._body, data[0], more, made)

    # -- from the engine's thread

    def _put(self, ticket: Ticket, event: Preview | Future[MadeImage]) -> None:
        with suppress(RuntimeError):  # the event loop ended with the stream still open: nobody reads it
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (ticket, event))


def sampling_fields(made: MadeImage, steps: int) -> dict[str, Any]:
    """How an image was sampled: fields of an answer that are not OpenAI's."""
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


def encode_all(images: Sequence[Any], body: ParsedBody, metrics: Metrics) -> list[bytes]:
    """PIL images as files of the format asked for; takes time, so not in the loop's thread."""
    start = time.monotonic()
    files = [encode(image, body.output_format, body.compression) for image in images]
    metrics.encoded(time.monotonic() - start)
    return files


async def finished_images(tickets: Sequence[Ticket]) -> list[MadeImage]:
    return list(await asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets)))


async def until_disconnect(receive: Receive, work: Awaitable[list[MadeImage]]) -> list[MadeImage] | None:
    """The result of the work; None as soon as the client is gone."""
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


def answer_for(error: BaseException, record: RequestRecord) -> ErrorAnswer:
    """The answer for an error; what only the operator may know goes to the log, with the request's id."""
    if not isinstance(error, Exception):
        raise error
    answer = error_answer(error)
    record.outcome = answer.code
    if answer.status == 500:
        log.error("a request failed", exc_info=error.__cause__ or error, extra={"fields": {"id": record.id}})
    return answer
