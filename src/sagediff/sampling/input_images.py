"""How pipelines take the images that requests begin from, as data; and the keywords of a wave's call.

A pipeline that takes one image for each prompt gets a list with one for each, also where all are the same: each row's
generator then draws for its own image, so that members of a group keep equal noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.prompts.requests import ImageRequest
from sagediff.sampling.strength import takes_strength

Way: TypeAlias = Literal["each", "one", "references"]

_EACH = (
    "StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline StableDiffusionControlNetPipeline "
    "StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetInpaintPipeline "
    "StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline StableDiffusionXLControlNetPipeline "
    "StableDiffusionXLControlNetImg2ImgPipeline StableDiffusionXLControlNetInpaintPipeline "
    "StableDiffusion3Img2ImgPipeline StableDiffusion3InpaintPipeline KolorsImg2ImgPipeline "
    "LatentConsistencyModelImg2ImgPipeline FluxImg2ImgPipeline FluxInpaintPipeline FluxFillPipeline "
    "FluxControlPipeline FluxControlImg2ImgPipeline FluxControlInpaintPipeline FluxKontextPipeline "
    "FluxKontextInpaintPipeline ChromaImg2ImgPipeline QwenImageImg2ImgPipeline "
    "QwenImageInpaintPipeline QwenImageEditPipeline QwenImageEditInpaintPipeline ZImageImg2ImgPipeline "
    "ZImageInpaintPipeline LTXImageToVideoPipeline"
)
_REFERENCES = (
    "Flux2Pipeline Flux2KleinPipeline Flux2KleinKVPipeline QwenImageEditPlusPipeline ZImageOmniPipeline"
)
WAYS: dict[str, Way] = {
    **dict.fromkeys(_EACH.split(), "each"),
    "WanImageToVideoPipeline": "one",
    **dict.fromkeys(_REFERENCES.split(), "references"),
}
"""How a pipeline takes `image`: one for each prompt, in a list ("each"); one for all prompts of a call ("one"); or one
or several, all of them for every prompt of a call ("references"). What is not named gets no request's image."""

_NEEDS_NONE = {
    "FluxKontextPipeline",
    "Flux2Pipeline",
    "Flux2KleinPipeline",
    "Flux2KleinKVPipeline",
    "ZImageOmniPipeline",
}
ONE_PROMPT = {"QwenImageEditPlusPipeline": "QwenImageEditPipeline"}
"""Pipelines that take one prompt a call, so that nothing can be shared; and which to take instead."""

GUIDES_ONE = frozenset({"PRXPipeline", "PRXPixelPipeline"})
"""Pipelines that cannot guide more prompts than one per call: diffusers gives their denoiser two timesteps then, of
however many rows."""


@dataclass(frozen=True)
class ImageKeywords:
    """How one pipeline takes images.

    Attributes:
        way: None where that is not known.
        image: its keyword for a request's image; None where it takes none.
        takes_mask, takes_strength: whether it has those keywords.
    """

    name: str
    way: Way | None
    image: str | None
    takes_mask: bool
    takes_strength: bool

    @classmethod
    def of(cls, pipe: Any) -> ImageKeywords:
        kind = type(pipe)
        parameters = inspect.signature(kind.__call__).parameters
        image = next((name for name in ("image", "control_image") if name in parameters), None)
        way = next((WAYS[each.__name__] for each in kind.__mro__ if each.__name__ in WAYS), None)
        if hasattr(getattr(pipe, "controlnet", None), "nets"):
            way = None  # a list goes by net
        return cls(kind.__name__, way, image, "mask_image" in parameters, takes_strength(pipe))

    # -- before anything runs

    def check(
        self,
        requests: Sequence[ImageRequest],
        keywords: Mapping[str, Any],
        where: Callable[[int], str] = "prompt {}".format,
    ) -> None:
        """Refuse what the pipeline cannot take, or cannot do without.

        Args:
            keywords: of the call, given for all requests.
            where: what to call a request in a message, by its number.

        Raises:
            InputError: such an image, mask or strength; the request is named.
            UnsupportedPipelineError: it is not known how the pipeline takes images.
        """
        if keywords.get("padding_mask_crop") is not None and any(each.images for each in requests):
            raise InputError(
                "padding_mask_crop crops one image for all prompts: give image and mask_image for all, not by requests"
            )
        for number, request in enumerate(requests):
            given = {
                "mask_image": request.mask,
                "strength": request.strength,
                self.image: request.images or None,
            }
            for name, value in given.items():
                if name is not None and value is not None and keywords.get(name) is not None:
                    raise InputError(
                        f"{where(number)}: `{name}` is given for all prompts too; give it one way"
                    )
            self._check_taken(where(number), request)
            self._check_needed(where(number), request, keywords)

    def _check_taken(self, at: str, request: ImageRequest) -> None:
        images = request.images
        if images and self.image is None:
            raise InputError(
                f"{at}: there is an image, and {self.name} takes none: take a pipeline that does, as "
                f"AutoPipelineForImage2Image or AutoPipelineForInpainting make it of this one (`from_pipe`)"
            )
        if (images or request.mask) and self.way is None:
            raise UnsupportedPipelineError(
                f"{at}: there is an image, and it is not known whether {self.name} takes one for each prompt: "
                f"give it as a keyword of the call, or run the pipeline inside shared_sampling"
            )
        if len(images) > 1 and self.way != "references":
            raise InputError(f"{at}: there are {len(images)} images, and {self.name} takes one for a prompt")
        if request.mask is not None and not self.takes_mask:
            raise InputError(f"{at}: there is a mask_image, and {self.name} takes none; leave it out")
        if request.strength is not None and not self.takes_strength:
            raise InputError(f"{at}: there is a strength, and {self.name} takes none; leave it out")

    def _check_needed(self, at: str, request: ImageRequest, keywords: Mapping[str, Any]) -> None:
        if self.way is None or self.name in _NEEDS_NONE:
            return
        if not request.images and not _is_given(keywords, self.image, "image_embeds", "latents"):
            raise InputError(f"{at}: there is no image, and {self.name} begins from one; give one")
        is_filled_in = self.takes_mask and not _is_given(keywords, "mask_image", "masked_image_latents")
        if is_filled_in and request.mask is None:
            raise InputError(f"{at}: there is no mask_image, and {self.name} needs one; give one")

    def calls(self, requests: Sequence[ImageRequest]) -> list[Hashable]:
        """For each request what its images demand of all requests in one call: equal entries may run together."""
        if self.way == "each":  # pipelines scale all to the size of the first
            return [
                tuple(each.size for each in (*request.images, *_one(request.mask))) for request in requests
            ]
        return [(request.images, request.mask) for request in requests]

    # -- for the call

    def of_wave(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """The keywords of a call for requests that may run together.

        Raises:
            InputError: an image's file was changed meanwhile.
        """
        first = requests[0]
        found: dict[str, Any] = {}
        if first.strength is not None:
            found["strength"] = first.strength
        if self.image is not None and first.images:
            if self.way == "each":
                found[self.image] = _opened([request.images[0] for request in requests])
            else:
                opened = _opened(first.images)
                found[self.image] = opened[0] if self.way == "one" else opened
        if first.mask is not None:
            found["mask_image"] = _opened([request.mask for request in requests])
        return found


def check_prompts_per_call(pipe: Any) -> None:
    """Raises UnsupportedPipelineError for a pipeline that takes one prompt a call."""
    name = type(pipe).__name__
    if name in ONE_PROMPT:
        raise UnsupportedPipelineError(
            f"{name} takes one prompt per call, so that prompts cannot share steps: take {ONE_PROMPT[name]}, or call "
            f"it prompt by prompt"
        )


def check_guided_prompts(pipe: Any, guided: int) -> None:
    """Raises UnsupportedPipelineError for a pipeline that cannot guide so many prompts in a call."""
    name = type(pipe).__name__
    if guided > 1 and name in GUIDES_ONE:
        raise UnsupportedPipelineError(
            f"{name} can guide one prompt per call only, so that guided prompts cannot share steps: give "
            f"guidance_scale=1, or call it prompt by prompt"
        )


def _opened(images: Sequence[Any]) -> list[Any]:
    """Each opened, the same one once."""
    opened: dict[Any, Any] = {}
    return [opened[each] if each in opened else opened.setdefault(each, each.open()) for each in images]


def _one(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,)


def _is_given(keywords: Mapping[str, Any], *names: str | None) -> bool:
    return any(keywords.get(name) is not None for name in names if name is not None)
