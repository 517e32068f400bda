"""Keywords of a pipeline that hold something for each prompt, and their part for some of the prompts.

Which keywords do so is declared by name, never guessed from a length: three ControlNets have three scales, whether
there are three prompts or not.  What is not declared, and could be one entry per prompt, is refused by name.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from sagediff.errors import InputError
from sagediff.prompts.requests import in_order
from sagediff.sampling.input_images import ImageKeywords

Kind: TypeAlias = Literal["text", "rows", "image", "mask", "adapter"]

_TEXTS = "prompt_2 prompt_3 prompt_4 negative_prompt negative_prompt_2 negative_prompt_3 negative_prompt_4"
_ROWS = (
    "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds prompt_embeds_2 "
    "negative_prompt_embeds_2 prompt_attention_mask negative_prompt_attention_mask prompt_attention_mask_2 "
    "negative_prompt_attention_mask_2 prompt_embeds_mask negative_prompt_embeds_mask prompt_embeds_mask_2 "
    "negative_prompt_embeds_mask_2 image_embeds negative_image_embeds latents masked_image_latents"
)
_IMAGES = "image control_image"
_MASKS = "mask_image control_mask"
# One entry per adapter: diffusers gives each entry to all prompts of a call
_ADAPTERS = (
    "ip_adapter_image ip_adapter_image_embeds negative_ip_adapter_image negative_ip_adapter_image_embeds"
)
_FOR_ALL = (
    "timesteps sigmas guidance_schedule original_size target_size crops_coords_top_left negative_original_size "
    "negative_target_size negative_crops_coords_top_left controlnet_conditioning_scale control_guidance_start "
    "control_guidance_end control_mode adapter_conditioning_scale skip_guidance_layers text_encoder_out_layers "
    "callback_on_step_end_tensor_inputs complex_human_instruction cross_attention_kwargs joint_attention_kwargs "
    "attention_kwargs"
)

PER_PROMPT: dict[str, Kind] = {
    **dict.fromkeys(_TEXTS.split(), "text"),
    **dict.fromkeys(_ROWS.split(), "rows"),
    **dict.fromkeys(_IMAGES.split(), "image"),
    **dict.fromkeys(_MASKS.split(), "mask"),
    **dict.fromkeys(_ADAPTERS.split(), "adapter"),
}
"""What a keyword holds for each prompt: a text, a row of a tensor, an image or a mask; or, for none of them, one
image per adapter."""

FOR_ALL = frozenset(_FOR_ALL.split())
"""Lists that belong to the call, however long they are.  Single numbers, texts and switches belong to it too, whatever
they are called."""

# What an image or latents are begun from: prompts may share steps only where it is equal
_STARTS = ("latents", "image", "mask_image", "masked_image_latents")

Cut: TypeAlias = Callable[[Sequence[int]], Any]
"""From numbers of prompts to the keyword's value for them."""


class PerPrompt:
    """The keywords of a call for a number of prompts.

    Args:
        pipe: the pipeline that they are for.
        keywords: by name; `prompt` and what else the sampler sets is not among them.
        count: of the prompts.

    Raises:
        InputError: a keyword that the pipeline does not take, that holds something for another number of prompts, or of
            which it is not known whether it holds something for each prompt.
    """

    def __init__(self, pipe: Any, keywords: Mapping[str, Any], count: int) -> None:
        self._pipe, self._count = pipe, count
        self._images = ImageKeywords.of(pipe)
        self._crops = keywords.get("padding_mask_crop") is not None  # which pipelines do with one image only
        self._check_names(keywords)
        self._cuts = {name: self._cut(name, value) for name, value in keywords.items()}

    def of(self, members: Sequence[int]) -> dict[str, Any]:
        """The keywords for those prompts, in that order."""
        return {name: cut(members) for name, cut in self._cuts.items()}

    def starts(self) -> list[Hashable]:
        """For each prompt what its image is begun from, as far as that is a keyword: who shares steps needs it equal.

        The image of a ControlNet is none of that: it is a condition, and merged like others.
        """
        control = self._control_name()
        cuts = [self._cuts[name] for name in _STARTS if name in self._cuts and name != control]
        own = [cut for cut in cuts if cut([0]) is not cut([self._count - 1])]  # not the same one for all
        return [tuple(_digest(cut([i])) for cut in own) for i in range(self._count)]

    def _check_names(self, keywords: Mapping[str, Any]) -> None:
        kind = type(self._pipe)
        parameters = inspect.signature(kind.__call__).parameters
        known: set[str] = set(parameters)
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            if not kind.__module__.startswith("diffusers."):
                return  # somebody's own, which may take anything
            known |= {
                "callback",
                "callback_steps",
            }  # all that diffusers takes so; the rest it ignores without a word
        if unknown := [name for name in keywords if name not in known]:
            raise InputError(f"{kind.__name__} takes no {', '.join(unknown)}; leave it out")

    def _cut(self, name: str, value: Any) -> Cut:
        kind = PER_PROMPT.get(name)
        if value is None or (kind is None and _is_single(value)):
            return lambda members: value
        if kind is None:
            self._check_for_all(name, value)
            return lambda members: value
        if kind == "adapter":
            self._check_adapters(name, value)
            return lambda members: value
        if name == self._control_name():
            nets = getattr(self._pipe.controlnet, "nets", None)
            if nets is not None:
                return self._cut_nets(name, value, len(nets))
            if "ControlNetUnion" in type(self._pipe).__name__ and isinstance(value, list | tuple):
                return self._cut_nets(name, value, len(value))  # one for each kind of control
        if name == "image" and self._images.way == "references":
            return lambda members: value
        return self._cut_rows(name, value, kind)

    def _cut_rows(self, name: str, value: Any, kind: Kind) -> Cut:
        """What holds one entry for each prompt, or one for all of them."""
        if kind == "text" and isinstance(value, str):
            return lambda members: [value] * len(members)
        if kind in ("image", "mask") and _is_one_image(value, kind):
            if self._is_taken_each(name):
                return lambda members: [value] * len(members)
            return lambda members: value
        if isinstance(value, torch.Tensor | np.ndarray) and value.dtype != object and value.ndim:
            return self._cut_tensor(name, value, kind)
        entries = in_order(value, name)
        if any(not _is_entry(entry, kind) for entry in entries):
            what = {"text": "a text", "rows": "a tensor"}.get(kind, "an image")
            raise InputError(
                f"`{name}` should hold {what} for each prompt ({self._count}), got {_words(value)}"
            )
        if len(entries) == 1:
            is_for_all = kind in ("image", "mask") and not self._is_taken_each(name)
            return lambda members: entries * (1 if is_for_all else len(members))
        self._check_length(name, len(entries))
        return lambda members: [entries[i] for i in members]

    def _cut_tensor(self, name: str, value: Any, kind: Kind) -> Cut:
        if kind == "text":
            texts = in_order(value, name)
            return self._cut_rows(name, texts, kind)
        if len(value) == 1 and kind in ("image", "mask") and not self._is_taken_each(name):
            return lambda members: value  # the pipeline gives it to all
        if len(value) == 1:
            return lambda members: value[[0] * len(members)]
        self._check_length(name, len(value))
        return lambda members: value[list(members)]

    def _cut_nets(self, name: str, value: Any, nets: int) -> Cut:
        """The images of several ControlNets: a list with one entry for each of them."""
        if not isinstance(value, list | tuple) or len(value) != nets:
            raise InputError(
                f"`{name}` should be a list with an entry for each of the {nets} ControlNets, got {_words(value)}"
            )
        if any(isinstance(entry, list | tuple) for entry in value):
            raise InputError(
                f"`{name}` holds a list of lists, of which it is not known whether it goes by ControlNet or by prompt: "
                f"give each ControlNet one image, or a tensor with a row for each prompt"
            )
        cuts = [self._cut_rows(f"{name}[{i}]", entry, "image") for i, entry in enumerate(value)]
        return lambda members: [cut(members) for cut in cuts]

    def _is_taken_each(self, name: str) -> bool:
        """Whether the pipeline begins each prompt's image from one of its own, which one for all is then given to each
        as: their generators draw for it (`input_images`)."""
        return self._images.way == "each" and name in (self._images.image, "mask_image") and not self._crops

    def _control_name(self) -> str | None:
        """The keyword that holds the images of the pipeline's ControlNets."""
        if getattr(self._pipe, "controlnet", None) is None:
            return None
        parameters = inspect.signature(type(self._pipe).__call__).parameters
        return "control_image" if "control_image" in parameters else "image"

    def _check_length(self, name: str, length: int) -> None:
        if length != self._count:
            raise InputError(
                f"`{name}` holds {length} entries for {self._count} prompts; give one for each, in their order, or one "
                f"for all"
            )

    def _check_adapters(self, name: str, value: Any) -> None:
        entries = value if isinstance(value, list | tuple) else [value]
        adapters = _adapters(self._pipe)
        if isinstance(value, list | tuple) and adapters is not None and len(value) != adapters:
            raise InputError(
                f"`{name}` holds {len(value)} entries, and the pipeline has {adapters} IP-Adapters: there is one for "
                f"each adapter, which goes to all prompts, not one per prompt; sample prompts with other images apart"
            )
        rows = [len(entry) for entry in entries if isinstance(entry, torch.Tensor) and entry.ndim > 1]
        if name.endswith("embeds") and self._count > 1 and any(count > 2 for count in rows):
            raise InputError(
                f"`{name}` holds {max(rows)} rows for an adapter: diffusers gives an IP-Adapter's embeddings to all "
                f"prompts of a call, so there is one row (two with guidance, the negative one first), not one per "
                f"prompt; sample prompts with other images apart"
            )

    def _check_for_all(self, name: str, value: Any) -> None:
        """A keyword that the call does not hold for each prompt must not look as if it did."""
        if self._count == 1 or _is_plain(value, with_lists=name in FOR_ALL):
            return
        if isinstance(value, list | tuple) and len(value) != self._count and all(map(_is_single, value)):
            return
        raise InputError(
            f"`{name}` is {_words(value)}, and it is not known whether that is one entry for each of the "
            f"{self._count} prompts: give it to one prompt at a time, or run the pipeline inside shared_sampling; "
            f"one entry per prompt is known for {', '.join(sorted(n for n in PER_PROMPT if n not in _ADAPTERS))}"
        )


# -- values ----------------------------------------------------------------------------------------


def _is_single(value: Any) -> bool:
    """Whether a value has no entries: a number, a text, a switch, one image, a function."""
    return isinstance(
        value, bool | int | float | str | np.generic | FunctionType | torch.dtype | torch.device
    ) or _is_pil(value)


def _is_plain(value: Any, with_lists: bool) -> bool:
    """Whether a value is made up of single ones, in mappings or, where they may be, in lists and arrays of numbers."""
    if value is None or _is_single(value):
        return True
    if isinstance(value, Mapping):
        return all(_is_plain(entry, with_lists) for entry in value.values())
    if isinstance(value, torch.Tensor | np.ndarray):
        return not value.ndim or (with_lists and value.ndim == 1 and value.dtype != object)
    return with_lists and isinstance(value, list | tuple) and all(_is_plain(entry, True) for entry in value)


def _is_pil(value: Any) -> bool:
    from PIL.Image import Image

    return isinstance(value, Image)


def _adapters(pipe: Any) -> int | None:
    """How many IP-Adapters a pipeline has; None where it does not tell."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    projection = getattr(denoiser, "encoder_hid_proj", None)
    layers = getattr(projection, "image_projection_layers", None)
    return None if layers is None else len(layers)


def _is_one_image(value: Any, kind: Kind) -> bool:
    """Whether it is one image, which a pipeline gives to all prompts."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 2 or (value.ndim == 3 and (kind == "image" or len(value) == 1))
    if isinstance(value, np.ndarray):
        return value.ndim == 2 or (value.ndim == 3 and (kind == "image" or value.shape[-1] == 1))
    return _is_pil(value)


def _is_entry(entry: Any, kind: Kind) -> bool:
    if kind == "text":
        return isinstance(entry, str)
    if kind == "rows":
        return isinstance(entry, torch.Tensor | np.ndarray)
    return _is_pil(entry) or (isinstance(entry, torch.Tensor | np.ndarray) and entry.ndim in (2, 3))


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:
        return None


def _words(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    length = _length(value)
    name = f"{type(value).__name__}"
    return f"a {name}" if length is None or isinstance(value, str) else f"a {name} of {length}"


def _digest(value: Any) -> str:
    """Digest of an image, a tensor, or a list of them, by content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(value):
        digest.update(part + b"\0")
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _parts(entry)
    elif _is_pil(value):
        yield f"{value.mode} {value.size}".encode()
        yield value.tobytes()
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    else:
        yield repr(value).encode()
