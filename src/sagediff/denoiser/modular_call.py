"""Modular pipelines behind the call of the others: prompts and options in, `.images` or `.frames` out.

A `ModularPipeline` takes whatever its blocks ask for, as keywords that no signature names; its guidance scale is its
guiders'; and it returns all that it made on the way.  `with_plain_call` gives it a signature, and one output.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from sagediff.denoiser.guiders import guidance_scale_of, guides, guiding, is_modular
from sagediff.denoiser.private_names import blocks_of
from sagediff.errors import InputError

_OUTPUTS = {"videos": "frames", "images": "images"}  # a block's output, and what other pipelines call it
_ENCODED_EACH = (
    "Flux3ModularPipeline",
    "Flux3DistilledModularPipeline",
)  # their text encoder takes one prompt
_ENCODING = ("prompt_upsampler", "text_encoder")  # blocks of that encoding
_EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds")
_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call, by name; those of a modular one are what its blocks take."""
    if is_modular(pipe) and not isinstance(pipe, ModularCall):
        return _parameters(pipe)
    return inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}


def with_plain_call(pipe: Any) -> Any:
    """A modular pipeline with a call like that of other pipelines; any other pipeline as it is.

    Everything but the call is the pipeline's own: what is set or read goes to it.
    """
    if not is_modular(pipe) or isinstance(pipe, ModularCall):
        return pipe
    kind = type(pipe)

    def call(self: Any, **given: Any) -> Any:
        return self.run(**given)

    call.__signature__ = inspect.Signature([_SELF, *_parameters(pipe).values()])  # type: ignore[attr-defined]
    own = type(kind.__name__, (ModularCall,), {"__call__": call, "__module__": kind.__module__})
    return own(pipe)


class ModularCall:
    """What `with_plain_call` makes; each is of a class of its own, named as the pipeline's, with a call that has a
    signature."""

    def __init__(self, pipe: Any) -> None:
        object.__setattr__(self, "modular", pipe)

    def __getattr__(self, name: str) -> Any:
        if name == "modular" or (name.startswith("__") and name.endswith("__")):  # while it is copied
            raise AttributeError(name)
        return getattr(self.modular, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self.modular), name, None), property):  # sizes that the pipeline works out
            object.__setattr__(self, name, value)
        else:
            setattr(self.modular, name, value)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.modular.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Of every block that has a bar, however deep: the pipeline's own method reaches the first level."""
        for block in _all_blocks(blocks_of(self.modular)):
            if hasattr(block, "set_progress_bar_config"):
                block.set_progress_bar_config(**config)

    def run(self, guidance_scale: float | None = None, **given: Any) -> SimpleNamespace:
        """The call.

        Args:
            guidance_scale: of the guiders, for this call; of the model, where it is an input of that.
            given: what the blocks take.

        Raises:
            InputError: no guidance, for blocks that cannot do without; or prompts that cannot run in one call.
        """
        taken = {parameter.name for parameter in blocks_of(self.modular).inputs}
        scale = guidance_scale
        if guidance_scale is not None and "guidance_scale" in taken:
            given["guidance_scale"], scale = guidance_scale, None
        output, pipe = _output(self.modular), self.modular
        try:
            with guiding(self.modular, scale):
                if type(pipe).__name__ in _ENCODED_EACH and isinstance(given.get("prompt"), list):
                    pipe, given = _encoded_each(pipe, given)
                made = pipe(output=output, **given)
        except ValueError as error:
            if not str(error).startswith("Required input 'negative_"):
                raise
            raise InputError(
                f"{type(self.modular).__name__} cannot run without guidance: its blocks ask for negative embeddings, "
                f"and make them only where its guider guides; take another guidance scale than {guidance_scale}"
            ) from error
        return SimpleNamespace(**{_OUTPUTS[output]: made})


def _encoded_each(pipe: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The pipeline without its text encoder, and what it takes: the embeddings of each prompt, made one by one.

    Raises:
        InputError: embeddings of different length, which no mask could tell apart from padding.
    """
    import torch

    encoder, rest = (type(pipe)(_some_blocks(pipe, encoding)) for encoding in (True, False))
    for part in (encoder, rest):
        for name, component in pipe.components.items():
            setattr(part, name, component)
    prompts, negative = given["prompt"], given.get("negative_prompt")
    taken, left = ({parameter.name for parameter in blocks_of(part).inputs} for part in (encoder, rest))
    own = {name: given[name] for name in taken & given.keys() - {"prompt", "negative_prompt"}}
    found: dict[str, list[Any]] = {name: [] for name in _EMBEDDINGS}
    for number, prompt in enumerate(prompts):
        text = negative[number] if isinstance(negative, list) else negative
        state = encoder(prompt=prompt, **own, **({} if text is None else {"negative_prompt": text}))
        for name, rows in found.items():
            rows += [] if state.get(name) is None else [state.get(name)]
    for name, rows in found.items():
        lengths = sorted({row.shape[1] for row in rows})
        if len(lengths) > 1:
            raise InputError(
                f"{type(pipe).__name__} pads each prompt to a length of its own and reads the padding, so prompts of "
                f"{' and '.join(map(str, lengths))} tokens (`{name}`) cannot run in one call: sample those of each "
                f"length apart"
            )
    made = {name: torch.cat(rows) for name, rows in found.items() if rows}
    return rest, {name: given[name] for name in left & given.keys()} | made


def _some_blocks(pipe: Any, encoding: bool) -> Any:
    """The blocks that make a prompt's embeddings, or all others."""
    blocks = pipe.blocks
    for name in list(blocks.sub_blocks):
        if (name in _ENCODING) != encoding:
            del blocks.sub_blocks[name]
    return blocks


def _output(pipe: Any) -> str:
    names = {output.name for output in blocks_of(pipe).outputs}
    return next((name for name in _OUTPUTS if name in names), "images")


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    found = {
        taken.name: _parameter(taken.name, taken.default)
        for taken in blocks_of(pipe).inputs
        if taken.name is not None
    }
    scale = guidance_scale_of(pipe)
    if scale is not None and "guidance_scale" not in found:
        found["guidance_scale"] = _parameter("guidance_scale", scale if guides(pipe) else 1.0)
    return found


def _parameter(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


def _all_blocks(block: Any) -> Iterator[Any]:
    yield block
    for inner in getattr(block, "sub_blocks", {}).values():
        yield from _all_blocks(inner)
