"""`ImageRequest`: one image asked for, whoever asks: a caller, a row of a prompt file, or a server's client."""

from __future__ import annotations

import math
from collections.abc import Iterable, KeysView, Mapping, Set
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from sagediff.errors import InputError
from sagediff.files.lora_files import LoraSet
from sagediff.files.prompt_text import text_fault

if TYPE_CHECKING:
    from sagediff.files.input_image import InputImage

# What must agree (`plan.compatibility` decides by it): "call" for one call of the pipeline, "group" to share steps.
_CALL, _GROUP = {"agree": "call"}, {"agree": "group"}


@dataclass(frozen=True)
class ImageRequest:
    """One image asked for.

    Attributes:
        prompt, negative_prompt: texts; None for a negative prompt leaves it to the pipeline.
        seed: of its noise; None lets whoever makes the image derive one. An image with a seed of its own shares
            only if `share` says so, since it would otherwise depend on its group.
        width, height: pixels; None for the model's own.
        guidance_scale: None for the run's own.
        share: True or False; None leaves it to `seed`.
        image: what it begins from or is guided by, as the pipeline has it: a PIL image, the path of a file, or several
            of either for a pipeline that takes several. Requests share only where they show the same.
        mask_image: white where the image is to be painted anew; as `image`.
        strength: in (0, 1], how much of the image is replaced; None for the pipeline's own.
        lora: the LoRAs that the image is sampled with, in place of those that the pipeline has: `PATH` or
            `PATH:WEIGHT`, several in a list; "none", or an empty list, for no LoRA; None for the pipeline's own.
            Requests run and share only with those of the same LoRAs; a prompt has the same noise with any.

    Raises:
        InputError: an empty prompt, a number out of range, or an image or a LoRA that cannot be read.
    """

    prompt: str
    negative_prompt: str | None = field(default=None, metadata=_GROUP)
    seed: int | None = None
    width: int | None = field(default=None, metadata=_CALL)
    height: int | None = field(default=None, metadata=_CALL)
    guidance_scale: float | None = field(default=None, metadata=_CALL)
    share: bool | None = None
    image: Any = field(default=None, metadata=_GROUP)
    mask_image: Any = field(default=None, metadata=_GROUP)
    strength: float | None = field(default=None, metadata=_CALL)
    lora: Any = field(default=None, metadata=_CALL)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError(f"prompt must be a text that is not empty, got {self.prompt!r}")
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            raise InputError(f"negative_prompt must be a text, got {self.negative_prompt!r}")
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if text and (fault := text_fault(text)):
                raise InputError(f"{name} {fault}")
        for name in ("seed", "width", "height"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise InputError(f"{name} must be a whole number, got {value!r}")
        if (self.width is None) != (self.height is None):
            raise InputError(f"width and height must be given together, got {self.width} and {self.height}")
        if self.width is not None and self.height is not None and min(self.width, self.height) < 1:
            raise InputError(f"width and height must be at least 1, got {self.width}x{self.height}")
        scale = self.guidance_scale
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real)):
            raise InputError(f"guidance_scale must be a number, got {scale!r}")
        if scale is not None and not (math.isfinite(scale) and scale >= 0):
            raise InputError(f"guidance_scale must be at least 0, got {scale}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed must lie in [0, 2**63), got {self.seed}")
        self._check_strength()
        if self.lora is not None:
            object.__setattr__(self, "lora", LoraSet.of(self.lora))
        if self.image is not None or self.mask_image is not None:
            self._take_images()

    def _check_strength(self) -> None:
        strength = self.strength
        if strength is not None and (isinstance(strength, bool) or not isinstance(strength, Real)):
            raise InputError(f"strength must be a number, got {strength!r}")
        if strength is not None and not 0 < strength <= 1:
            raise InputError(f"strength must lie in (0, 1], got {strength}")

    def _take_images(self) -> None:
        """Images by what they show, in place of what was given."""
        from sagediff.files.input_image import InputImage  # most requests have none

        if self.image is None:
            raise InputError("mask_image is given without an image")
        given = self.image
        several = isinstance(given, list | tuple)
        if several and not given:
            raise InputError("image holds no images; leave it out")
        images = tuple(map(InputImage.of, given if several else (given,)))
        object.__setattr__(self, "image", images if several else images[0])
        if self.mask_image is not None:
            object.__setattr__(self, "mask_image", InputImage.of(self.mask_image, "mask"))

    @property
    def images(self) -> tuple[InputImage, ...]:
        """The images that it begins from; none for most."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def mask(self) -> InputImage | None:
        """Its mask, if it has one."""
        found: InputImage | None = self.mask_image
        return found

    @property
    def identity(self) -> str:
        """What tells it from other requests of a run, the seed and the settings aside: its text, and what it begins
        from."""
        begun_from = [each.digest for each in (*self.images, self.mask) if each is not None]
        return "\0".join([self.prompt, *begun_from])

    @property
    def may_share(self) -> bool:
        """Whether it may take steps together with others."""
        return self.seed is None if self.share is None else self.share


@dataclass(frozen=True, kw_only=True)
class QueuedRequest(ImageRequest):
    """An image that a server's client asked for.

    Attributes:
        id: unique among all requests of the server.
        num_inference_steps: sampling steps, at least 1.
        tenant: who asked. Sharing stays within one tenant unless the operator opens it.
        deadline: time of the server's clock, in seconds, after which it is not begun; None waits forever.
    """

    id: str
    num_inference_steps: int = field(metadata=_CALL)
    tenant: str = field(default="", metadata=_GROUP)
    deadline: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")
        if self.lora is not None:
            raise InputError("a server samples with its own LoRAs; leave out lora")


def as_requests(prompts: Iterable[Any]) -> list[ImageRequest]:
    """Texts and requests, all as requests, in the order in which they are given.

    Args:
        prompts: anything that has an order; it is gone through once (`in_order`).

    Raises:
        InputError: one string in place of a list, no prompts, or one that is empty or no text; it is numbered.
    """
    if isinstance(prompts, str):
        raise InputError("prompts must be a list of strings, got one string")
    given = in_order(prompts, "prompts")
    if not given:
        raise InputError("there are no prompts")
    out: list[ImageRequest] = []
    for i, prompt in enumerate(given):
        if isinstance(prompt, ImageRequest):
            out.append(prompt)
        elif isinstance(prompt, str) and prompt.strip():
            out.append(ImageRequest(prompt))
        else:
            raise InputError(f"prompt {i} is empty or not a string: {prompt!r}")
    return out


def in_order(values: Any, name: str) -> list[Any]:
    """The entries of a list, a tuple, an array, a column of a table, or a generator, in the order in which they stand.

    By position, whatever a column's index says: `values[0]` of a pandas series is the entry with the label 0.

    Args:
        name: begins the message.

    Raises:
        InputError: a text, a table, or something whose entries have no order.
    """
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, str | bytes):
        raise InputError(f"`{name}` must be a list of strings, got one string")
    if hasattr(values, "columns") or hasattr(values, "column_names"):
        raise InputError(f"`{name}` is a table ({type(values).__name__}); give one column of it")
    if isinstance(values, Mapping | Set) and not isinstance(values, KeysView):
        raise InputError(f"`{name}` is a {type(values).__name__}, whose entries have no order; give a list")
    if not isinstance(values, Iterable):
        raise InputError(f"`{name}` should be a list, got {values!r}")
    if callable(
        column := getattr(values, "to_pylist", None)
    ):  # pyarrow's, whose entries are scalars of its own
        return list(column())
    try:
        return [_plain(value) for value in values]
    except TypeError as error:  # an array without dimensions
        raise InputError(f"`{name}` should be a list, got {type(values).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    """A text of numpy's, which is a kind of `str`, or a scalar of pyarrow's, as Python has it."""
    if isinstance(value, str):
        return str(value)
    return value.as_py() if callable(getattr(value, "as_py", None)) else value
