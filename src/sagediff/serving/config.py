"""What a server's operator decides: on the command line, else by `SAGEDIFF_...` in the environment, else as here."""

from __future__ import annotations

import hashlib
import hmac
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sagediff.errors import InputError
from sagediff.serving.engine.batcher import BatchPolicy


class ServeConfig(BaseSettings):
    """Every number is checked when the server starts.

    Attributes:
        model_name: what clients call the model.
        host, port: where it listens; 127.0.0.1 keeps it to this machine.
        api_keys: who may ask, and which tenant he is; with commas in the environment. None: anyone may, as one tenant.
        window_ms: milliseconds that a request waits for others to share with. Longer: more sharing, later images.
        max_batch: most requests in a wave.
        max_queue: most requests waiting; more get 429.
        share: False switches sharing off; requests are still batched.
        share_across_keys: lets clients of different keys share. Their images then tell of each other's prompts.
        cache_mib: memory for shared phases that later requests replay, in MiB; 0 switches that off.
        cache_threshold: least cosine between a prompt and the middle of those that a shared phase was run for. Higher:
            fewer replays, safer images. None: the grouping threshold, at least 0.5.
        cache_dir: folder where they are also kept for the next start. None: nowhere.
        cache_variety: how many of them there should be near a prompt before all requests replay. Higher: more
            compositions, fewer replays at first.
        affinity_guard: full waves by which the replica where a request's meaning is at home may be busier than the
            least busy one, where there are several. Higher: more sharing, longer queues.
        affinity_threshold: least cosine between a prompt and the one that its home was founded for. Higher: requests
            spread more evenly, and fewer meet. None: the grouping threshold.
        scale_target: requests in hand of each replica, on the average, that there are replicas for, where their number
            may change. Lower: more replicas, shorter queues, less sharing. None: a full wave.
        scale_up_s, scale_down_s: seconds for which more, or fewer, must have been wanted.
        scale_look_back_s: seconds over which requests in hand are averaged.
        max_n, max_side, max_steps, max_prompt_length: most images, pixels per side, steps and characters of a request.
        max_images: most images of a request with many prompts; never more than the queue holds.
        max_body_bytes: largest request.
        deadline_s: seconds that a request may wait before it is begun.
        drain_s: seconds that requests under way get to finish when the server is told to end.
        stored_bytes, stored_s: memory and time for images asked for by URL.
        log_format: of the lines on stderr: `json` for machines, `text` for people, `auto` for text on a terminal only.
        log_prompts: whether a request's line holds its prompts.
    """

    model_config = SettingsConfigDict(env_prefix="SAGEDIFF_", frozen=True, protected_namespaces=())

    model_name: str = "demo"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    window_ms: float = Field(50.0, ge=0, le=60_000)
    max_batch: int = Field(16, ge=1)
    max_queue: int = Field(256, ge=1)
    share: bool = True
    share_across_keys: bool = False
    cache_mib: float = Field(256.0, ge=0, allow_inf_nan=False)
    cache_threshold: float | None = Field(None, ge=-1, le=1)
    cache_dir: Path | None = None
    cache_variety: int = Field(3, ge=1)
    affinity_guard: float = Field(1.0, ge=0, allow_inf_nan=False)
    affinity_threshold: float | None = Field(None, ge=-1, le=1)
    scale_target: float | None = Field(None, gt=0, allow_inf_nan=False)
    scale_up_s: float = Field(10.0, ge=0, allow_inf_nan=False)
    scale_down_s: float = Field(300.0, ge=0, allow_inf_nan=False)
    scale_look_back_s: float = Field(15.0, gt=0, allow_inf_nan=False)
    max_n: int = Field(10, ge=1)
    max_side: int = Field(2048, ge=1)
    max_steps: int = Field(100, ge=1)
    max_prompt_length: int = Field(4000, ge=1)
    max_images: int = Field(64, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1)
    deadline_s: float = Field(300.0, gt=0)
    drain_s: float = Field(60.0, gt=0)
    stored_bytes: int = Field(256 << 20, ge=0)
    stored_s: float = Field(3600.0, gt=0)
    log_format: Literal["auto", "json", "text"] = "auto"
    log_prompts: bool = False

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            tuple(key.strip() for key in value.split(",") if key.strip()) if isinstance(value, str) else value
        )

    @classmethod
    def of(cls, **given: Any) -> ServeConfig:
        """What is given and not None; the rest from the environment.

        Raises:
            InputError: a value that cannot work; the message never holds a key.
        """
        try:
            config = cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(f"the server's setting `{name}` cannot work: {first['msg']}") from None
        if config.max_n > config.max_queue:
            raise InputError(
                f"max_n ({config.max_n}) must not exceed max_queue ({config.max_queue}): such a request could "
                "never be taken"
            )
        return config

    def batch_policy(self, sharing: bool) -> BatchPolicy:
        return BatchPolicy(
            self.window_ms / 1000, self.max_batch, self.max_queue, sharing, self.share_across_keys
        )

    def tenant_of(self, key: str | None) -> str | None:
        """The tenant behind an API key, by which nobody can tell the key; None if it is not one of ours."""
        if not self.api_keys:
            return ""
        # digests, so that neither the length of a key nor how much of it is right can be told from the time taken
        given, found = _digest(key or ""), False
        for known in self.api_keys:  # all of them, for the same reason
            found |= hmac.compare_digest(given, _digest(known))
        return _label(key or "") if found else None

    @property
    def most_images(self) -> int:
        """Of a request with many prompts: all of them must fit into the queue."""
        return min(self.max_images, self.max_queue)

    def label_of(self, tenant: str) -> str:
        """What logs call a tenant: which of the keys, from 1. No digest: it would give a weak key away."""
        for number, key in enumerate(self.api_keys, 1):
            if self.tenant_of(key) == tenant:
                return f"key-{number}"
        return "anyone"


@cache  # of the operator's own keys only
def _label(key: str) -> str:
    """A key's tenant: slow to compute, as it is written into the cache's files, and a weak key could be found from a
    fast digest."""
    return hashlib.scrypt(key.encode(), salt=b"sagediff tenant", n=2**14, r=8, p=1, dklen=8).hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
