"""What anyone can do who can connect to a server: each is answered as documented, and others are served meanwhile."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import Address, serving
from test_serving_server import CAT

from sagediff.serving.http.hosts import AllowedHosts
from sagediff.serving.tenants import Tenants

PATIENCE = 0.5  # seconds, of this server
BOUND = 8  # connections
POST = "POST /v1/images/generations HTTP/1.1\r\n"
JSON = "Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(small_demo: Any) -> Iterator[Address]:
    with serving(
        lambda: small_demo, receive_s=PATIENCE, send_s=PATIENCE, max_connections=BOUND, max_body_bytes=1 << 16,
        max_n=10, drain_s=5.0,
    ) as address:  # fmt: skip
        assert address.engine.wait_until_loaded(60) == "ready"
        yield address


def place(server: Address) -> tuple[str, int]:
    return "127.0.0.1", int(server.url.rpartition(":")[2])


@contextmanager
def connected(server: Address, text: str = "") -> Iterator[socket.socket]:
    with socket.create_connection(place(server), timeout=20) as made:
        made.sendall(text.encode())
        yield made


def heard(made: socket.socket) -> bytes:
    """All that the server says until it closes."""
    found = []
    try:
        while part := made.recv(1 << 16):
            found.append(part)
    except ConnectionResetError:
        pass
    return b"".join(found)


def answer(made: socket.socket) -> tuple[int, dict[str, Any]]:
    head, _, body = heard(made).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def head(server: Address, *lines: str) -> str:
    return POST + "".join(f"{line}\r\n" for line in (f"Host: {place(server)[0]}", *lines)) + JSON + "\r\n"


@contextmanager
def healthy(server: Address) -> Iterator[list[float]]:
    """`/health` is asked meanwhile, and never takes a second."""
    took: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            start = time.monotonic()
            assert httpx.get(f"{server.url}/health", verify=False).status_code == 200
            took.append(time.monotonic() - start)
            time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield took
    finally:
        stop.set()
        asking.join(30)
    assert took and max(took) < 1


# -- bodies


def test_a_body_is_counted_as_it_comes_whatever_its_headers_say(server: Address) -> None:
    lines = "Content-Length: 5", "Transfer-Encoding: chunked"
    with healthy(server), connected(server, head(server, *lines)) as made:
        try:
            for _ in range(200):
                made.sendall(b"10000\r\n" + b"[],[" * (1 << 14) + b"\r\n")
        except OSError:  # it does not take all that
            pass
        status, error = answer(made)
    assert status == 400 and "either Content-Length or Transfer-Encoding" in error["message"]


@pytest.mark.parametrize(
    "line, status, code",
    [
        ("Content-Length: 65537", 413, "too_large"),
        (f"Content-Length: {'9' * 20}", 413, "too_large"),
        ("Transfer-Encoding: chunked", 411, "length_required"),
    ],
)
def test_a_body_that_is_not_taken_is_refused_at_its_head(
    server: Address, line: str, status: int, code: str
) -> None:
    with connected(server, head(server, line)) as made:
        made.shutdown(socket.SHUT_WR)
        found, error = answer(made)
    assert (found, error["code"]) == (status, code)


def test_the_connection_ends_with_a_body_that_was_not_read(server: Address) -> None:
    smuggled = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(server, head(server, "Content-Length: 99999") + smuggled) as made:
        made.shutdown(socket.SHUT_WR)
        told = heard(made)
    assert told.count(b"HTTP/1.1") == 1 and b"connection: close" in told


@pytest.mark.parametrize(
    "body, words",
    [
        (b"[" * 5_000, "more than 32 deep"),
        (b'{"prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "more than 32 deep"),
        (b"[" + b"[]," * 2_000 + b"[]]", "a JSON object"),
        (b'{"a": [' + b"{}," * 20_000 + b"{}]}", "more than 10000 values"),
        (b'{"a": "\\\\", "b": [' + b'"\\"",' * 10_000 + b"1]}", "more than 10000 values"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "5000 digits"),
        (b'{"prompt": "a", "seed": 1e999}', "not finite"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "not finite"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": "a"', "not JSON"),
        (b"", "not JSON"),
        (b"[]", "a JSON object"),
        (b'{"prompt": "a\\u0000b"}', "U+0000"),
        (b'{"prompt": "a\\u001b[31m"}', "U+001B"),
        (b'{"prompt": "a", "n": []}', "n: Input should be a valid integer"),
    ],
    ids=range(16),
)
def test_json_that_is_none_or_out_of_bounds_is_a_400_in_words(
    server: Address, body: bytes, words: str
) -> None:
    start = time.monotonic()
    made = httpx.post(
        f"{server.url}/v1/images/generations", content=body, headers={"Content-Type": "application/json"}
    )
    assert time.monotonic() - start < 1
    error = made.json()["error"]
    assert made.status_code == 400 and words in error["message"] and error["param"] != ""


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_said_to_be_json_is_refused_by_the_name_of_the_header(
    server: Address, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    content = json.dumps({"prompt": CAT}).encode()
    made = httpx.post(f"{server.url}/v1/images/generations", content=content, headers=headers)
    error = made.json()["error"]
    assert (made.status_code, error["param"]) == (415, None)
    assert "Content-Type: application/json" in error["message"] and (kind or "none") in error["message"]


def test_what_stands_in_texts_does_not_count(server: Address) -> None:
    texts = ["[{,}]" * 700, '"\\"' * 1000, "\\" * 3999 + '"', "ж," * 1900]
    body = json.dumps({"prompts": texts, "user": "[" * 9000, "response_format": "url"})
    made = httpx.post(
        f"{server.url}/v1/images/batches", content=body, headers={"Content-Type": "application/json"}
    )
    assert "b64_json, not url" in made.json()["error"]["message"]  # it came as far as that


def test_many_names_twice_are_found_at_once(server: Address) -> None:
    names = ",".join(f'"{i}":0' for i in [*range(6000), 5999])
    start = time.monotonic()
    made = httpx.post(
        f"{server.url}/v1/images/generations", content="{" + names + "}",
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert made.status_code == 400 and time.monotonic() - start < 0.5


# -- connections


@pytest.mark.parametrize(
    "text, told",
    [
        ("", b""),
        ("GET / HTT", b"408"),
        (POST + "Host: 127.0.0.1\r\nContent-Le", b"408"),
        (
            POST + "Host: 127.0.0.1\r\n" + JSON + "Content-Length: 50\r\n\r\n{",
            b"did not arrive within 0.5 seconds",
        ),
    ],
)
def test_a_client_that_does_not_finish_its_request_is_not_waited_for(
    server: Address, text: str, told: bytes
) -> None:
    start = time.monotonic()
    with connected(server, text) as made:
        found = heard(made)
    assert told in found and PATIENCE <= time.monotonic() - start < PATIENCE + 3.5


def test_who_sends_a_byte_now_and_then_is_not_waited_for_either(server: Address) -> None:
    start = time.monotonic()
    with connected(server) as made:
        made.settimeout(0.05)
        for byte in ("GET /health HTTP/1.1\r\nX-Slow: " + "x" * 200).encode():
            try:
                made.sendall(bytes([byte]))
                if not made.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - start < PATIENCE + 2


def test_idle_connections_make_room_for_who_has_a_request(server: Address) -> None:
    with ExitStack() as stack:
        for number in range(5 * BOUND):
            text = ("", "GET /hea", head(server, "Content-Length: 9"))[number % 3]
            stack.enter_context(connected(server, text))
        start = time.monotonic()
        assert httpx.get(f"{server.url}/health", verify=False).status_code == 200
        assert server.post(prompt=CAT).status_code == 200
        assert time.monotonic() - start < 3
        assert len(server.server.server_state.connections) <= BOUND


def test_who_reads_nothing_of_his_answer_is_given_up(server: Address) -> None:
    body = json.dumps({"prompt": CAT, "n": 10, "output_format": "png", "size": "128x128"})
    state = server.server.server_state
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        made.connect(place(server))
        asked = head(server, f"Content-Length: {len(body)}") + body
        made.sendall(asked.encode())
        made.settimeout(20)
        assert made.recv(1)  # its answer has begun
        # and more of them, so that the kernel's buffers are full
        get = "GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        made.sendall(get.encode() * 400)
        give_up = time.monotonic() + 10
        while state.connections and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not state.connections


# -- names and keys


@pytest.mark.parametrize("path", ["/v1/models", "/", "/metrics", "/v1/images/generations", "/openapi.json"])
def test_a_foreign_name_is_refused_wherever_it_leads(server: Address, path: str) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "192.0.2.1"):
        for method in ("GET", "POST", "OPTIONS"):
            made = httpx.request(method, server.url + path, headers={"Host": host}, verify=False)
            assert (made.status_code, made.json()["error"]["code"]) == (400, "invalid_host")
            assert "SAGEDIFF_ALLOWED_HOSTS" in made.text


def test_a_url_is_never_of_a_foreign_name(server: Address) -> None:
    body = {"prompt": CAT, "response_format": "url"}
    path = f"{server.url}/v1/images/generations"
    assert httpx.post(path, json=body, headers={"Host": "evil.example"}).status_code == 400
    for forwarded in ({}, {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}):
        made = httpx.post(path, json=body, headers=forwarded, timeout=60).json()["data"][0]
        assert made["url"].startswith(server.url)


@pytest.mark.parametrize(
    "bound, names, allowed, refused",
    [
        (
            "127.0.0.1",
            (),
            ["localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:80", "localhost."],
            ["10.0.0.1", "a.b"],
        ),
        ("localhost", (), ["localhost", "127.0.0.1:9"], ["10.0.0.1", "local"]),
        (
            "0.0.0.0",
            (),
            ["10.0.0.1:80", "[fe80::1]", socket.gethostname()],
            ["evil.example", "10.0.0.1.nip.io"],
        ),
        (
            "images.lan",
            ("Alias.lan",),
            ["images.lan", "alias.LAN:80", "10.0.0.1"],
            ["other.lan", "a/b", "a b"],
        ),
        ("0.0.0.0", ("*",), ["anything.example"], ["user@evil", "a:b:c", "a:99999999"]),
    ],
)
def test_names_that_the_server_answers_to(
    bound: str, names: tuple[str, ...], allowed: list[str], refused: list[str]
) -> None:
    hosts = AllowedHosts(bound, names)
    assert all(map(hosts.allows, allowed)) and not any(map(hosts.allows, refused))


def test_many_keys_cost_a_request_no_more_than_one() -> None:
    keys = [f"key {i}" for i in range(3000)]
    tenants = Tenants(keys, on_disk=False)
    start = time.monotonic()
    for key in (*keys[-100:], *(f"no {key}" for key in keys[:100])):
        tenant = tenants.of(key)
        if tenant is not None:
            assert tenants.label(tenant) == f"key-{keys.index(key) + 1}"
    assert time.monotonic() - start < 0.2


# -- routes and fields


def test_options_and_unknown_routes_say_what_there_is(server: Address) -> None:
    url = f"{server.url}/v1/images"
    for method, path, status, allow in (
        ("OPTIONS", "generations", 204, "OPTIONS, POST"),
        ("OPTIONS", "batches", 204, "OPTIONS, POST"),
        ("GET", "generations", 405, "OPTIONS, POST"),
        ("DELETE", "generations", 405, "OPTIONS, POST"),
        ("POST", "edits", 404, None),
        ("POST", "variations", 404, None),
        ("PUT", "nothing/here", 404, None),
        ("GET", "nothing", 404, None),
    ):
        made = httpx.request(method, f"{url}/{path}", json={} if method == "POST" else None)
        assert (made.status_code, made.headers.get("allow")) == (status, allow), (method, path)


def test_fields_that_are_not_understood_are_named_in_the_answer(server: Address) -> None:
    more = {"steps": 4, "width": 64, "style": "vivid", "nothing": None, "x" * 99: 1}
    made = server.post(prompt=CAT, **more).json()
    told = made["warnings"]
    assert len(told) == 4 and "use num_inference_steps" in told[0] and "use size" in told[1]
    assert "style is no field" in told[2] and "x" * 41 not in told[3]
    assert "warnings" not in server.post(prompt=CAT).json()
    stream = httpx.post(
        f"{server.url}/v1/images/batches", json={"prompts": [CAT], "steps": 3}, timeout=60
    ).text
    assert "use num_inference_steps" in stream
    client = server.client().images.generate(prompt=CAT, extra_body={"steps": 4})
    assert client.data[0].b64_json and "steps" in client.model_extra["warnings"][0]


def test_a_prompt_that_is_cut_at_the_models_limit_is_said_so(server: Address) -> None:
    long = CAT + " and" * 40
    (told,) = server.post(prompt=long).json()["warnings"]
    assert "longer than the 24 tokens" in told
    stream = httpx.post(f"{server.url}/v1/images/batches", json={"prompts": [CAT, long]}, timeout=60).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert {event["index"]: event.get("warnings") for event in events} == {0: None, 1: [told]}


def test_seeds_that_are_drawn_survive_a_client_whose_numbers_are_doubles(server: Address) -> None:
    answers = server.post(prompt=CAT, n=10, share=False).json()["data"]
    assert all(int(float(made["seed"])) == made["seed"] < 2**53 for made in answers)
    assert len({made["seed"] for made in answers}) == 10
    assert server.post(prompt=CAT, seed=2**63 - 1).json()["data"][0]["seed"] == 2**63 - 1
    assert server.post(prompt=CAT, seed=float(2**60)).status_code == 400  # which of its neighbours was it?


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 96), st.sampled_from([4, 8, 12, 16, 40, 64, 88]), st.booleans())
def test_every_size_that_passes_the_check_gives_an_image_of_it(
    server: Address, one: int, two: int, wide: bool
) -> None:
    width, height = (one, two) if wide else (two, one)
    made = server.post(prompt=CAT, size=f"{width}x{height}")
    if made.status_code == 200:
        data = base64.b64decode(made.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(data)).size == (width, height)
    else:
        assert (made.status_code, made.json()["error"]["param"]) == (400, "size")
    assert (made.status_code == 200) == (width % 8 == height % 8 == 0)


@pytest.mark.parametrize("size", ["12x12", "64x60", "4x4", "65x65"])
def test_sizes_that_the_pipeline_refuses_are_the_clients_to_mend(server: Address, size: str) -> None:
    made = server.post(prompt=CAT, size=size)
    error = made.json()["error"]
    assert (made.status_code, error["param"]) == (400, "size") and "multiples of 8" in error["message"]
