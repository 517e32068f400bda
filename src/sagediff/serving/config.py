"""A server's settings: from the command line, else `SAGEDIFF_...` in the environment, else the defaults here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sagediff.errors import InputError
from sagediff.files.json_input import MAX_BYTES
from sagediff.serving.engine.batcher import BatchPolicy


class ServeConfig(BaseSettings):
    """Settings of a server, checked when it starts."""

    model_config = SettingsConfigDict(
        env_prefix="SAGEDIFF_", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )

    model_name: str = "demo"
    """The model's name in requests and answers."""
    host: str = "127.0.0.1"
    """Address; 127.0.0.1 is this machine only."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further names by which clients may address the server, beside addresses and this machine's own name;
    comma-separated in the environment, `*` for all. Others are refused, as a page elsewhere could have them."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """Keys that are accepted, each a tenant; comma-separated in the environment. None: no key is needed, and all
    clients are one tenant."""
    window_ms: float = Field(50.0, ge=0, le=60_000)
    """Milliseconds that a request waits for others to share."""
    max_batch: int = Field(16, ge=1)
    """Most requests in a wave."""
    max_queue: int = Field(256, ge=1)
    """Most requests waiting; more get 429."""
    share: bool = True
    """False switches sharing off; requests are still batched."""
    share_across_keys: bool = False
    """Let keys share; their images reveal each other's prompts."""
    cache_mib: float = Field(256.0, ge=0, allow_inf_nan=False)
    """MiB for shared phases that later requests replay."""
    cache_threshold: float | None = Field(None, ge=-1, le=1)
    """Minimum similarity to replay. None: the threshold, at least 0.5."""
    cache_dir: Path | None = None
    """Folder to keep shared phases in. None: memory only."""
    cache_variety: int = Field(3, ge=1)
    """Shared phases near a prompt before all requests replay."""
    affinity_guard: float = Field(1.0, ge=0, allow_inf_nan=False)
    """With several replicas, how many full waves busier than the least busy one a replica may be and still get
    requests similar to those it served. Higher: more sharing, longer queues."""
    affinity_threshold: float | None = Field(None, ge=-1, le=1)
    """Minimum cosine similarity to prompts that a replica served for requests to follow them there. Higher:
    requests spread more evenly, and share less. None: the grouping threshold."""
    scale_target: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Where the number of replicas may change, requests in flight per replica, on average, that scaling aims at.
    Lower: more replicas, shorter queues, less sharing. None: a full wave."""
    scale_up_s: float = Field(10.0, ge=0, allow_inf_nan=False)
    """Seconds for which more replicas must have been needed."""
    scale_down_s: float = Field(300.0, ge=0, allow_inf_nan=False)
    """Seconds for which fewer replicas must have been needed."""
    scale_look_back_s: float = Field(15.0, gt=0, allow_inf_nan=False)
    """Seconds over which requests in flight are averaged."""
    max_n: int = Field(10, ge=1)
    """Most images of one prompt per request."""
    max_side: int = Field(2048, ge=1)
    """Largest width and height, in pixels."""
    max_steps: int = Field(100, ge=1)
    """Most steps per request."""
    max_prompt_length: int = Field(4000, ge=1)
    """Most characters of a prompt."""
    max_images: int = Field(64, ge=1)
    """Most images of a request with many prompts; never more than the queue holds."""
    max_body_bytes: int = Field(1 << 20, ge=1, le=MAX_BYTES)
    """Largest request body."""
    receive_s: float = Field(20.0, gt=0, allow_inf_nan=False)
    """Seconds in which a request's head must have arrived, and as many again for its body. Higher: slower clients are
    accepted, and idle ones hold connections for longer."""
    send_s: float = Field(20.0, gt=0, allow_inf_nan=False)
    """Seconds after which the connection of a client that reads nothing of its answer is closed."""
    max_connections: int = Field(1000, ge=4)
    """Most connections at once, and never more than the open files that the system allows. Where they are used up,
    those that have waited longest for their client make room."""
    deadline_s: float = Field(300.0, gt=0)
    """Seconds that a request may wait before its wave begins."""
    drain_s: float = Field(60.0, gt=0)
    """Seconds that running requests get to finish when the server is asked to stop."""
    stored_bytes: int = Field(256 << 20, ge=0)
    """Memory for images answered as URLs."""
    stored_s: float = Field(3600.0, gt=0)
    """Seconds for which images answered as URLs are kept."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Lines on stderr; auto: text on a terminal."""
    log_prompts: bool = False
    """Whether a request's log line holds its prompts."""

    @field_validator("api_keys", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A text that holds nothing but commas is a mistake: taken for "none", it would open the server to all."""
        if not isinstance(value, str):
            return value
        found = tuple(each.strip() for each in value.split(",") if each.strip())
        if not found:
            raise ValueError("it is set and holds nothing; name one at least, or leave it out")
        return found

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            if not key.strip():
                raise ValueError("an API key is empty")
            if any("\ud800" <= character <= "\udfff" for character in key):
                raise ValueError("an API key is not UTF-8 text")
        return value

    @classmethod
    def of(cls, **given: Any) -> ServeConfig:
        """Settings that are given and not None; the rest from the environment.

        Raises:
            InputError: an invalid value; the message never holds a key.
        """
        try:
            config = cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(
                f"the server's setting `{name}` is invalid: {first['msg'].removeprefix('Value error, ')}"
            ) from None
        if config.max_n > config.max_queue:
            raise InputError(
                f"max_n ({config.max_n}) must not exceed max_queue ({config.max_queue}): such a request would "
                "never fit into the queue"
            )
        return config

    def batch_policy(self, sharing: bool) -> BatchPolicy:
        return BatchPolicy(
            self.window_ms / 1000, self.max_batch, self.max_queue, sharing, self.share_across_keys
        )

    @property
    def most_images(self) -> int:
        """Most images of a request with many prompts: all of them must fit into the queue."""
        return min(self.max_images, self.max_queue)


def check_steps(config: ServeConfig, steps: int) -> None:
    """Raises InputError: a request without steps of its own would have more than the server takes."""
    if steps > config.max_steps:
        raise InputError(f"--steps is {steps}, but SAGEDIFF_MAX_STEPS allows {config.max_steps} a request")
