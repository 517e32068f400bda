"""Many prompts in one request: one window, one stream, each image an outcome of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from engines import condition_of, faulty
from servers import Address, serving
from test_serving_server import CAT, DOG, opened

LION = "a large lion at the top on a red background"


@pytest.fixture(scope="module")
def server(small_demo: Any) -> Iterator[Address]:
    with serving(lambda: small_demo, max_images=6) as address:
        assert address.engine.wait_until_loaded(60) == "ready"
        yield address


def post(server: Address, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/images/batches", json=body, headers=headers, timeout=60)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [kind.removeprefix("event: ") for kind, _ in blocks] == [event["type"] for event in found]
    return found


def completed(answer: httpx.Response) -> dict[int, dict[str, Any]]:
    return {e["index"]: e for e in events(answer) if e["type"] == "image_generation.completed"}


def test_every_prompt_gets_its_image_and_those_alike_say_that_they_shared(server: Address) -> None:
    found = completed(post(server, prompts=[CAT, DOG, LION], num_inference_steps=4))
    assert sorted(found) == [0, 1, 2] and all(opened(e["b64_json"]).size == (64, 64) for e in found.values())
    assert len({e["group"] for e in found.values()}) == 1
    assert {(e["group_size"], e["shared_steps"], e["steps"]) for e in found.values()} == {(3, 2, 4)}
    assert sum(e["evaluations"] for e in found.values()) == pytest.approx(2 + 3 * 2)
    # without guidance, which the recipe leaves out anyway: its absence is not counted as saved
    assert {e["evaluations_alone"] for e in found.values()} == {4}


def test_groups_have_other_names_each_time_and_between_themselves(server: Address) -> None:
    names = set()
    for _ in range(2):
        found = completed(post(server, prompts=[CAT, DOG], share=False))
        names |= {event["group"] for event in found.values()}
        assert {event["group_size"] for event in found.values()} == {1}
        assert all(event["evaluations"] == event["evaluations_alone"] for event in found.values())
    assert len(names) == 4


def test_partial_images_say_their_step(server: Address) -> None:
    found = events(post(server, prompts=[CAT, DOG], num_inference_steps=4, partial_images=3))
    partial = [e for e in found if e["type"] == "image_generation.partial_image"]
    for index in (0, 1):
        steps = [(e["step"], e["steps"]) for e in partial if e["index"] == index]
        assert steps == [(1, 4), (2, 4), (3, 4)]


def test_n_is_of_each_prompt_and_a_seed_gives_what_it_gives_alone(server: Address) -> None:
    found = completed(post(server, prompts=[CAT, DOG], n=2, seed=7, num_inference_steps=2))
    assert [found[i]["seed"] for i in range(4)] == [7, 8, 7, 8]
    alone = server.client().images.generate(prompt=DOG, n=2, extra_body={"seed": 7}).data
    for one, other in zip((found[2], found[3]), alone, strict=True):
        images = [np.asarray(opened(text), dtype=int) for text in (one["b64_json"], other.b64_json)]
        assert np.abs(images[0] - images[1]).max() <= 2


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": CAT}, "prompts"),
        ({"prompts": [CAT, 3]}, "prompts.1"),
        ({"prompts": [CAT, " "]}, "prompts.1"),
        ({"prompts": [CAT, DOG, "x" * 5000]}, "prompts.2"),
        ({"prompts": [CAT, "half a pair \ud800"]}, "prompts.1"),
        ({"prompts": [CAT] * 7}, "prompts"),
        ({"prompts": [CAT] * 4, "n": 2}, "prompts"),
        ({"prompts": [CAT], "n": 5}, "n"),
        ({"prompts": [CAT], "num_inference_steps": 9}, "num_inference_steps"),
        ({"prompts": [CAT], "size": "63x64"}, "size"),
        ({"prompts": [CAT], "stream": False}, "stream"),
        ({"prompts": [CAT], "response_format": "url"}, "response_format"),
        ({"prompts": [CAT], "partial_images": 4}, "partial_images"),
    ],
)
def test_what_will_never_work_is_refused_with_the_fields_name(
    server: Address, body: dict[str, Any], param: str
) -> None:
    content = json.dumps(body)  # half a pair cannot be sent otherwise
    answer = httpx.post(
        f"{server.url}/v1/images/batches", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 and answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["param"] == param and answer.json()["error"]["message"]


def test_a_prompt_that_fails_costs_the_others_nothing(small_demo: Any, server: Address) -> None:
    culprit = condition_of(small_demo, DOG)

    def fault(conditions: Any) -> None:
        if any((row - culprit).abs().max() < 1e-4 for row in conditions):
            raise RuntimeError("the denoiser does not like dogs")

    with faulty(small_demo, fault):
        found = events(post(server, prompts=[CAT, DOG, LION], share=False))
    assert {e["index"]: e["type"] for e in found} == {
        0: "image_generation.completed", 1: "image_generation.failed", 2: "image_generation.completed",
    }  # fmt: skip
    error = next(e["error"] for e in found if e["index"] == 1)
    assert error["code"] == "image_failed" and "dogs" not in error["message"]


def test_more_than_the_queue_holds_is_refused_for_good(small_demo: Any) -> None:
    with serving(lambda: small_demo, max_queue=4, max_images=64) as small:
        small.engine.wait_until_loaded(60)
        answer = post(small, prompts=[CAT] * 5)
        assert answer.status_code == 400 and "at most 4" in answer.json()["error"]["message"]
        limits = httpx.get(f"{small.url}/v1/models").json()["data"][0]
        assert (limits["steps"], limits["max_steps"], limits["max_images"]) == (2, 8, 4)


def test_a_key_is_needed(small_demo: Any) -> None:
    with serving(lambda: small_demo, api_keys=("first",)) as locked:
        locked.engine.wait_until_loaded(60)
        assert post(locked, prompts=[CAT]).status_code == 401
        assert len(completed(post(locked, "first", prompts=[CAT]))) == 1
