"""The real server on a free port of this machine, asked by the unchanged `openai` client."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from servers import LEAVES, Address, serving

CAT = "a large cat at the top on a red background"
DOG = "a large dog at the top on a red background"


@pytest.fixture(scope="module")
def server(small_demo: Any) -> Iterator[Address]:
    with serving(lambda: small_demo) as address:
        assert address.engine.wait_until_loaded(60) == "ready"
        yield address


def opened(text: str | None) -> Any:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_the_client_generates_a_image(server: Address) -> None:
    answer = server.client().images.generate(model="demo", prompt=CAT)
    assert len(answer.data) == 1 and opened(answer.data[0].b64_json).size == (64, 64)
    assert answer.output_format == "png" and abs(answer.created - time.time()) < 60


def test_four_images_of_a_prompt_share_and_differ(server: Address) -> None:
    answer = server.client().images.generate(model="demo", prompt=CAT, n=4)
    images = [np.asarray(opened(entry.b64_json), dtype=int) for entry in answer.data]
    assert len(images) == 4
    assert all(np.abs(images[0] - other).max() > 10 for other in images[1:])
    assert {entry.model_extra["group_size"] for entry in answer.data} == {4}


def test_a_seed_gives_the_same_image_again_and_another_for_each_of_n(server: Address) -> None:
    client = server.client()
    once, again = (
        client.images.generate(prompt=CAT, n=2, extra_body={"seed": 5, "num_inference_steps": 3}).data
        for _ in range(2)
    )
    assert [entry.model_extra["seed"] for entry in once] == [5, 6]
    for one, two in zip(once, again, strict=True):
        gap = np.abs(
            np.asarray(opened(one.b64_json), dtype=int) - np.asarray(opened(two.b64_json), dtype=int)
        )
        assert gap.max() <= 2
    assert once[0].b64_json != once[1].b64_json and once[0].model_extra["group_size"] == 1


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_images_come_in_the_format_asked_for(server: Address, form: Any) -> None:
    answer = server.client().images.generate(prompt=CAT, output_format=form, size="64x64", user="somebody")
    assert opened(answer.data[0].b64_json).format == form.upper()


def test_images_come_by_url(server: Address) -> None:
    answer = server.client().images.generate(prompt=CAT, response_format="url")
    url = answer.data[0].url
    assert url is not None
    fetched = httpx.get(url)
    assert fetched.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(fetched.content)).size == (64, 64)
    assert httpx.get(f"{url}x").status_code == 404


def test_a_stream_brings_previews_and_then_the_image(server: Address) -> None:
    stream = server.client().images.generate(
        model="demo", prompt=CAT, stream=True, partial_images=2, extra_body={"num_inference_steps": 4}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(opened(event.b64_json).size == (64, 64) for event in events)


def test_a_stream_of_several_images_names_each(server: Address) -> None:
    events = list(server.client().images.generate(prompt=CAT, n=3, stream=True))
    assert {event.type for event in events} == {"image_generation.completed"}
    assert sorted(event.model_extra["index"] for event in events) == [0, 1, 2]


@pytest.mark.parametrize(
    "body, param",
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": CAT, "n": 5}, "n"),
        ({"prompt": CAT, "n": 0}, "n"),
        ({"prompt": CAT, "n": True}, "n"),
        ({"prompt": CAT, "n": 1.5}, "n"),
        ({"prompt": CAT, "size": "64"}, "size"),
        ({"prompt": CAT, "size": "64x9999"}, "size"),
        ({"prompt": CAT, "size": "63x64"}, "size"),
        ({"prompt": CAT, "num_inference_steps": 9}, "num_inference_steps"),
        ({"prompt": CAT, "guidance_scale": -1}, "guidance_scale"),
        ({"prompt": CAT, "seed": 2**63}, "seed"),
        ({"prompt": CAT, "output_format": "gif"}, "output_format"),
        ({"prompt": CAT, "stream": True, "response_format": "url"}, "response_format"),
    ],
)
def test_what_will_never_work_is_refused_and_not_tried_again(
    server: Address, body: dict[str, Any], param: str
) -> None:
    answer = server.post(**body)
    assert answer.status_code == 400 and answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param and error["message"]


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_text_that_is_no_unicode_is_refused(server: Address, field: str) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/generations",
        content=json.dumps({"prompt": CAT, field: "half a pair \ud800"}),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_the_client_raises_its_own_errors(server: Address) -> None:
    client = server.client(retries=2)
    with pytest.raises(openai.BadRequestError, match="at most 4") as bad:
        client.images.generate(prompt=CAT, n=9)
    assert bad.value.param == "n" and bad.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError, match="this server has 'demo'"):
        client.images.generate(prompt=CAT, model="dall-e-3")


def test_unknown_fields_and_nulls_are_tolerated(server: Address) -> None:
    answer = server.post(prompt=CAT, style="vivid", n=None, size=None, something={"new": 1})
    assert answer.status_code == 200


def test_a_whole_number_may_have_a_point(server: Address) -> None:
    assert server.post(prompt=CAT, n=1.0, seed=3.0).json()["data"][0]["seed"] == 3


def test_other_routes_answer_in_the_same_form(server: Address) -> None:
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{server.url}/v1/images/generations").status_code in (404, 405)
    broken = httpx.post(
        f"{server.url}/v1/images/generations", content=b"{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 400 and broken.json()["error"]["type"] == "invalid_request_error"


def test_models_health_readiness_and_metrics(server: Address) -> None:
    assert [model.id for model in server.client().models.list()] == ["demo"]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    server.client().images.generate(prompt=CAT, n=2)
    text = httpx.get(f"{server.url}/metrics").text
    assert 'sagediff_images_total{outcome="image"}' in text and "sagediff_evaluations_saved_total" in text


def test_a_guidance_scale_of_the_clients_own_is_applied(server: Address) -> None:
    plain, guided = (
        server.post(prompt=CAT, seed=1, **more).json()["data"][0] for more in ({}, {"guidance_scale": 4.0})
    )
    assert plain["evaluations"] == 2 and guided["evaluations"] == 4


def test_every_route_but_health_needs_a_key_and_tenants_do_not_meet(small_demo: Any) -> None:
    with serving(lambda: small_demo, api_keys=("first", "second"), window_ms=300.0) as server:
        server.engine.wait_until_loaded(60)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 200
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nowhere", "/v1/images/x"):
            refused = httpx.get(server.url + path)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
        for key in (None, "third", "firs", "first2"):
            assert server.post(key, prompt=CAT).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            server.client("third").images.generate(prompt=CAT)

        found: dict[str, Any] = {}

        def ask(name: str, key: str) -> None:
            found[name] = server.post(key, prompt=CAT, response_format="url").json()["data"][0]

        asking = [
            threading.Thread(target=ask, args=(f"{key} {i}", key))
            for key, count in (("first", 2), ("second", 1))
            for i in range(count)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(60)
        assert {name: made["group_size"] for name, made in found.items()} == {
            "first 0": 2, "first 1": 2, "second 0": 1,
        }  # fmt: skip
        url = found["first 0"]["url"]
        statuses = [
            httpx.get(url, headers={"Authorization": f"Bearer {key}"}).status_code
            for key in ("first", "second")
        ]
        assert statuses == [200, 404]


def test_while_loading_the_server_says_so(small_demo: Any) -> None:
    loaded = threading.Event()

    def load() -> Any:
        assert loaded.wait(60)
        return small_demo

    with serving(load) as server:
        try:
            answer = server.post(prompt=CAT)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
            assert int(answer.headers["retry-after"]) >= 1
            assert httpx.get(f"{server.url}/ready").status_code == 503
        finally:
            loaded.set()
        assert server.engine.wait_until_loaded(60) == "ready"
        assert server.post(prompt=CAT).status_code == 200


def test_a_full_queue_says_when_to_return(small_demo: Any) -> None:
    with serving(lambda: small_demo, max_queue=4, window_ms=2000.0, max_batch=8) as server:
        server.engine.wait_until_loaded(60)
        first = threading.Thread(target=server.post, kwargs={"prompt": CAT, "n": 4})
        first.start()
        while server.engine.waiting < 4:
            time.sleep(0.01)
        answer = server.post(prompt=DOG)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        assert server.client(retries=5).images.generate(prompt=DOG).data[0].b64_json
        first.join(60)


def test_a_client_that_leaves_is_forgotten(small_demo: Any) -> None:
    with serving(lambda: small_demo, window_ms=30_000.0) as server:
        server.engine.wait_until_loaded(60)
        for more in ({}, {"stream": True}):
            with pytest.raises(httpx.TimeoutException), httpx.Client(timeout=LEAVES) as client:
                client.post(f"{server.url}/v1/images/generations", json={"prompt": CAT, **more})
            give_up = time.monotonic() + 300
            while server.engine.waiting and time.monotonic() < give_up:
                time.sleep(0.01)
            assert server.engine.waiting == 0


def test_draining_answers_who_was_taken(small_demo: Any) -> None:
    answers: list[httpx.Response] = []
    with serving(lambda: small_demo, window_ms=30_000.0) as server:
        server.engine.wait_until_loaded(60)
        asking = threading.Thread(target=lambda: answers.append(server.post(prompt=CAT)))
        asking.start()
        while not server.engine.waiting:
            time.sleep(0.01)
        server.server.should_exit = True  # what a signal does
        asking.join(60)
    assert [answer.status_code for answer in answers] == [200]
    assert server.engine.state == "stopped"
