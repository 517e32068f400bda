"""What a denoiser's call looks like, as data: `Family`, one row of the table in `table.py`.

A family turns the arguments of a call into one tensor each with a row per sample, and back (`arguments.py`).  It knows
no model and no pipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sagediff.denoiser import arguments as values
from sagediff.denoiser.arguments import WORDS
from sagediff.denoiser.convention import Convention
from sagediff.denoiser.guidance import CONDITIONAL, NEGATIVE, UNGUIDED, Way

if TYPE_CHECKING:  # the table is read before torch is imported, to refuse a model at once
    from torch import Tensor

Role: TypeAlias = Literal["row", "condition", "discrete", "mask", "length", "neither"]
GuidanceKind: TypeAlias = Literal["batched", "two calls"]
MERGED: tuple[Role, ...] = ("condition", "discrete", "mask", "length")  # over the members of a group


@dataclass(frozen=True)
class Family:
    """A denoiser class's call.

    Attributes:
        sample: the argument that holds the noisy latents; its first size is the number of rows.
        arguments: role of every tensor argument, nested ones with a dot. One that has a single entry for all rows is
            left as it is: the model broadcasts it.
        guidance: "batched": one call with the negative and the conditional rows; "two calls": one call for
            each, in the same step.
        first: which of both comes first in the batch, or in the step.
        masks: for every mask, and every length, the condition whose tokens it tells, or several with spaces between.
            Entry i of a mask is the token i; it may be longer than the condition. 1 or True shows a token (or 0, in a
            mask that hides by a negative number). A length is the number of words, which come first.
        zero_padded: conditions that come without a mask, padded with tokens that are all zero.
        lists: arguments that are a list with one entry per row. Tensors of a condition may differ in their number
            of tokens; entries that hold no tensor (sizes) must be equal.
        parts: arguments that may be a list, tuple or dictionary of tensors, each with a row per sample (ControlNet's
            residuals, one tensor per block); the part i is named with a dot, `name.i`, and has the role of the whole.
        axes: the axis of the rows, where it is not the first.
        token_axes: the axis of the tokens, counted with the rows first, where it is not the second.
        several: arguments with several entries per row, side by side (one per frame).
        omitted: arguments that the denoiser is called without: memories from one call to the next, which save work
            and change nothing, and whose rows would be those of another step.
        predictions: by the name that they have in the denoiser's output, in their order there, the arguments that they
            have the shapes of; empty: `sample` alone, which has that of the noisy latents.
        text_first: the noisy latents and the prediction begin with the text's tokens, which the negative call has not.
        pipelines: by the name of a pipeline's class, what differs where that calls the denoiser: fields of this class.
            `arguments` and `masks` are added to those of the family.
        scale: the pipeline's argument for the scale of classifier-free guidance.
        unguided_scale: the value of that argument at which the prediction is the conditional one: 1 where
            pipelines compute u + s (c - u), 0 where c + s (c - u).
        makes: what the pipelines make.
        fps: of videos, how many frames per second their documented example shows.
        dtype: the half precision of their documented example. "bfloat16" where activations are larger than float16
            can hold, which would give black images.
        vae_dtype: that of the autoencoder, where it is another.
        convention: how its pipelines tell time and read predictions; None where training does not know, and refuses.

    Raises:
        ValueError: a declaration that contradicts itself.
    """

    sample: str
    arguments: Mapping[str, Role]
    guidance: GuidanceKind
    first: Literal["negative", "conditional"]
    masks: Mapping[str, str] = field(default_factory=dict)
    zero_padded: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    axes: Mapping[str, int] = field(default_factory=dict)
    token_axes: Mapping[str, int] = field(default_factory=dict)
    several: frozenset[str] = frozenset()
    omitted: frozenset[str] = frozenset()
    predictions: Mapping[str, str] = field(default_factory=dict)
    text_first: bool = False
    pipelines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scale: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
    unguided_scale: float = 1.0
    makes: Literal["images", "videos", "audio"] = "images"
    fps: float = 16.0
    dtype: Literal["float16", "bfloat16"] = "float16"
    vae_dtype: Literal["float32"] | None = None
    convention: Convention | None = None

    def __post_init__(self) -> None:
        assert self.ways  # a way that cannot be shared raises
        if set(self.masks) != {name for name, role in self.arguments.items() if role in ("mask", "length")}:
            raise ValueError("`masks` must say of every mask and length which condition it belongs to")
        padded = {*" ".join(self.masks.values()).split(), *self.zero_padded}
        if wrong := sorted(n for n in padded if self.arguments.get(n) not in ("condition", "discrete")):
            raise ValueError(f"padding is declared for {', '.join(wrong)}, which is no condition")
        if wrong := [name for name in self.lists if self.arguments.get(name) not in ("row", "condition")]:
            raise ValueError(f"{', '.join(wrong)}: only rows and conditions can be lists")
        if self.parts - set(self.arguments) or self.parts & self.lists:
            raise ValueError(
                f"{', '.join(sorted(self.parts))}: parts need a role, and are no lists with an entry per row"
            )
        placed = {*self.axes, *self.token_axes, *self.several}
        if wrong := sorted(placed - set(self.arguments) | placed & {self.sample, *self.lists}):
            raise ValueError(
                f"{', '.join(wrong)}: axes are those of arguments other than the sample and lists"
            )
        if wrong := sorted(self.several & padded):
            raise ValueError(f"{', '.join(wrong)}: what has several entries per row cannot be padded")
        if wrong := sorted(self.omitted & set(self.arguments)):
            raise ValueError(f"{', '.join(wrong)}: what is omitted has no role")
        if wrong := sorted({*self.predictions.values()} - set(self.arguments)):
            raise ValueError(f"{', '.join(wrong)}: predictions have the shapes of arguments")
        for name in self.pipelines:
            self.in_pipeline([name])

    def in_pipeline(self, names: Iterable[str]) -> Family:
        """The family as a pipeline calls it, by the names of its class and bases: the first that differs counts."""
        changes = next((self.pipelines[name] for name in names if name in self.pipelines), None)
        if changes is None:
            return self
        added = {
            name: {**getattr(self, name), **changes[name]}
            for name in ("arguments", "masks")
            if name in changes
        }
        return dataclasses.replace(self, **{**changes, **added, "pipelines": {}})

    @property
    def outputs(self) -> Mapping[str, str]:
        """`predictions`, filled in."""
        return self.predictions or {"sample": self.sample}

    def whole(self, name: str) -> str:
        """The argument that a tensor is a part of, or the tensor's own name."""
        whole = name.rpartition(".")[0]
        return whole if whole in self.parts else name

    @property
    def ways(self) -> tuple[Way, ...]:
        """How its pipelines guide, where `guidance.WAYS` has nothing else for one."""
        parts = (NEGATIVE, CONDITIONAL) if self.first == "negative" else (CONDITIONAL, NEGATIVE)
        return UNGUIDED, Way((parts,) if self.guidance == "batched" else tuple((part,) for part in parts))

    def role(self, name: str) -> Role:
        """The role of a tensor that `tensors` gave."""
        return "mask" if name.endswith(WORDS) else self.arguments[self.whole(name)]

    # -- arguments to tensors, and back ------------------------------------------------------------

    def named(
        self, parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A call's arguments by name, without what is omitted.

        Args:
            parameters: the names of the positional ones.
        """
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        return given | {name: None for name in self.omitted if name in given}

    def tensors(self, arguments: Mapping[str, Any], class_name: str) -> dict[str, Tensor]:
        """Every tensor among the arguments by its (dotted) name, with its rows first; lists as one padded tensor.

        With the list of a condition comes a mask of its words, named after it.

        Raises:
            UnsupportedPipelineError: a tensor or an object that the table does not name, or a list that cannot be one
                tensor.
        """
        return values.tensors_of(self, arguments, class_name)

    def put(self, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments with those tensors (as `tensors` names them) put in; nothing of the caller's is changed."""
        return values.put(self, arguments, tensors)

    def words(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which tokens of a condition are words, not padding: (n, tokens) of bool, for conditions that tell."""
        return values.words_of(self, tensors)
