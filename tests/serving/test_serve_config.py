"""Settings, keys, and images kept for a while: no model needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagediff.errors import InputError
from sagediff.pipelines.run_settings import ModelOptions, resolve
from sagediff.serving.config import ServeConfig
from sagediff.serving.failures import (
    Cancelled,
    DeadlineExpired,
    ImageFailed,
    NotReady,
    OutOfMemory,
    QueueFull,
)
from sagediff.serving.http.answers import error_answer
from sagediff.serving.http.image_store import ImageStore
from sagediff.serving.http.schema import GenerationBody, RequestProblem, parse_body
from sagediff.serving.local_engine import ServeRequest, cache_use
from sagediff.serving.tenants import Tenants


def test_what_is_given_goes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGEDIFF_PORT", "9000")
    monkeypatch.setenv("SAGEDIFF_MAX_BATCH", "3")
    monkeypatch.setenv("SAGEDIFF_API_KEYS", " one, two ,")
    config = ServeConfig.of(port=9001, max_batch=None)
    assert (config.port, config.max_batch, config.host) == (9001, 3, "127.0.0.1")
    assert config.api_keys == ("one", "two")


def test_a_setting_that_cannot_work_is_named_and_no_key_is_told() -> None:
    with pytest.raises(InputError, match="max_batch") as refused:
        ServeConfig.of(max_batch=0, api_keys="secret")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("value", ["", " ", ", ,", ",,,"])
@pytest.mark.parametrize("name", ["SAGEDIFF_API_KEYS", "SAGEDIFF_ALLOWED_HOSTS"])
def test_a_variable_that_is_set_and_holds_nothing_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for "none", it would open the server to everyone."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=name.removeprefix("SAGEDIFF_").lower()):
        ServeConfig.of()


def test_keys_that_nobody_could_mean_are_refused() -> None:
    for keys in (("",), ("good", " "), ("\udc80",)):
        with pytest.raises(InputError, match="api_keys"):
            ServeConfig.of(api_keys=keys)


def test_tenants_are_told_apart_by_key_and_do_not_tell_it() -> None:
    keys = ServeConfig.of(api_keys="one,two,schlüssel").api_keys
    for on_disk in (False, True):
        tenants = Tenants(keys, on_disk)
        names = [tenants.of(key) for key in ("one", "two", "schlüssel")]
        assert len(set(names)) == 3 and not any(name is None or name in ("one", "two") for name in names)
        assert [tenants.of(key) for key in (None, "", "on", "one ", "onetwo")] == [None] * 5
        assert (names == [Tenants(keys, on_disk).of(key) for key in keys]) == on_disk
    assert Tenants((), False).of(None) == ""


@pytest.mark.parametrize(
    "error, status, retries",
    [
        (RequestProblem("n", "too many"), 400, False),
        (RequestProblem("model", "none such", "model_not_found"), 404, False),
        (InputError("not with this pipeline"), 422, False),
        (QueueFull(4, 4, 7), 429, True),
        (NotReady("draining"), 503, True),
        (DeadlineExpired("too late"), 503, True),
        (OutOfMemory("too large"), 503, False),
        (ImageFailed("it broke"), 500, False),
        (Cancelled("gone"), 503, True),
        (KeyError("/secret/path"), 500, False),
    ],
)
def test_errors_say_whether_to_try_again_and_nothing_of_the_inside(
    error: Exception, status: int, retries: bool
) -> None:
    answer = error_answer(error)
    assert answer.status == status
    assert (answer.headers.get("x-should-retry") != "false") is retries
    assert set(answer.body["error"]) == {"message", "type", "param", "code"}
    assert "/secret/path" not in answer.message
    assert "Retry-After" in answer.headers or not isinstance(error, QueueFull | NotReady)


def wanted(**body: Any) -> Any:
    parsed = GenerationBody.model_validate({"prompt": "a cat"} | body)
    return parse_body(parsed, ServeConfig.of(), tenant="t", now=10.0, num_steps=7, size_multiple=8)


def test_a_body_becomes_one_request_a_image() -> None:
    made = wanted(n=3, seed=2**63 - 2, size="16x24", output_format="webp", output_compression=0)
    assert [request.seed for request in made.requests] == [2**63 - 2, 2**63 - 1, 0]
    assert len({request.id for request in made.requests}) == 3
    assert {(r.width, r.height, r.num_inference_steps, r.tenant) for r in made.requests} == {(16, 24, 7, "t")}
    assert made.requests[0].deadline == 310.0 and (made.output_format, made.compression) == ("webp", 0)


def test_what_a_client_leaves_out_is_the_servers_to_decide() -> None:
    made = wanted()
    request = made.requests[0]
    assert (request.width, request.guidance_scale, request.seed, request.share) == (None, None, None, None)
    assert made.output_format == "png" and not made.stream and not made.by_url


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_stored_images_are_their_tenants_and_bounded_in_bytes_and_time() -> None:
    clock = Clock()
    store = ImageStore(10, 60.0, clock)
    first, second = store.put(b"12345", "image/png", "one"), store.put(b"12345", "image/png", "two")
    assert store.get(first, "two") is None and store.get("no such", "one") is None
    found = store.get(first, "one")
    assert found is not None and found.data == b"12345"
    third = store.put(b"1", "image/png", "one")
    assert store.get(first, "one") is None and store.size == 6  # the oldest made room
    assert store.get(second, "two") is not None
    clock.now = 60.0
    assert store.get(third, "one") is None and store.size == 0
    store.put(b"12345678901", "image/png", "one")
    assert store.size == 0  # larger than all there is


def test_a_cache_on_disk_needs_weights_to_know_the_model_by(tmp_path: Path) -> None:
    settings = resolve(ModelOptions("demo", offload="sequential"))
    request = ServeRequest(settings, settings.sharing, None, {})
    with pytest.raises(InputError, match="--offload sequential leaves no weights to know the model by"):
        cache_use(request, ServeConfig(cache_dir=tmp_path / "cache"))
    assert cache_use(request, ServeConfig()) is not None and not (tmp_path / "cache").exists()
