"""LoRAs beside a pipeline's weights, as diffusers' adapters: put in whole, finite and fitting, or refused in words;
switched from one wave to the next; and taken out again.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils.peft_utils import recurse_remove_peft_layers

from sagediff.denoiser.private_names import unwrapped
from sagediff.errors import InputError, first_line
from sagediff.files.lora_files import LoraSet

_OF_LORA = re.compile(r"lora|lokr|hada|dora|diff_b?\b", re.IGNORECASE)
_HALF = re.compile(r"^(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<half>A|B|down|up)\b")


def check_lora_weights(file: Path) -> None:
    """Refuse a file whose tensors are not finite or lack their other half.

    Raises:
        InputError: names the tensor, or counts the pairs.
    """
    from safetensors import SafetensorError, safe_open

    halves: dict[str, set[str]] = {}
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            if not any(map(_OF_LORA.search, names)):
                raise InputError(f"{file} holds no LoRA: none of its {len(names)} tensors is of one")
            for name in names:
                tensor = opened.get_tensor(name)
                if tensor.is_floating_point() and not tensor.float().isfinite().all():
                    raise InputError(f"the LoRA {file} is broken: {name} holds values that are not finite")
                if found := _HALF.match(name):
                    halves.setdefault(found["layer"], set()).add(
                        "A" if found["half"] in ("A", "down") else "B"
                    )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a safetensors file: {first_line(error)}") from error
    lonely = sum(len(found) == 1 for found in halves.values())
    if lonely:
        raise InputError(
            f"the LoRA {file} is not whole: {lonely} of its {len(halves)} pairs of tensors lack one of the two"
        )


def load_adapter(pipe: Any, file: Path, name: str) -> None:
    """Put a LoRA beside a pipeline's weights as the adapter `name`. Says on stderr how many of its tensors fit, where
    not all do.

    Raises:
        InputError: the pipeline takes none, less than half of the tensors fit, or one has another shape.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no LoRA; leave out {file}")
    source = {"weight_name": file.name, "local_files_only": True}
    try:
        total = _tensors_in(pipe, file, source)
        with warnings.catch_warnings():  # peft wonders whether a second adapter is meant
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            pipe.load_lora_weights(str(file.parent), adapter_name=name, **source)
    except Exception as error:  # whatever a wrong file makes diffusers and peft raise
        if "Target modules" in str(error):
            raise _of_another_base(file, 0, 0) from error
        raise InputError(f"cannot load the LoRA {file}: {_difference(error)}") from error
    fitting = _count(
        each for part in _modules(pipe) for each, _ in part.named_parameters() if f".{name}" in each
    )
    if not any(name in adapters for adapters in pipe.get_list_adapters().values()) or 2 * fitting < total:
        raise _of_another_base(file, fitting, total)
    if fitting < total:
        print(
            f"warning: {fitting} of the {total} tensors of the LoRA {file} fit this model, the others are left out; "
            "it may have been made for another base",
            file=sys.stderr,
        )


def _of_another_base(file: Path, fitting: int, total: int) -> InputError:
    counts = f"{fitting} of its {total} tensors fit" if fitting else "it holds no layers of this model"
    return InputError(f"the LoRA {file} was made for another base: {counts}")


def _tensors_in(pipe: Any, file: Path, source: dict[str, Any]) -> int:
    """How many tensors of a LoRA the file holds, as diffusers names them."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        written = sum(bool(_HALF.match(name)) for name in opened.keys())  # noqa: SIM118
    options = dict(source)
    if "unet_config" in inspect.signature(pipe.load_lora_weights).parameters or hasattr(pipe, "unet"):
        options["unet_config"] = pipe.unet.config  # names of blocks are told apart by it
    found = pipe.lora_state_dict(str(file.parent), **options)
    state = found[0] if isinstance(found, tuple) else found
    return max(written, _count(state))  # a tensor may become several; others are dropped


def _count(names: Iterable[str]) -> int:
    return sum("lora" in name and "alpha" not in name for name in names)


def _modules(pipe: Any) -> list[Any]:
    import torch

    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _difference(error: Exception) -> str:
    """What torch says of tensors of another shape comes after its first line."""
    lines = [line.strip() for line in str(error).splitlines()]
    mismatches = [line for line in lines if line.startswith("size mismatch")]
    if not mismatches:
        return first_line(error)
    more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
    return f"it has another shape than this model: {mismatches[0]}{more}"


class LoraAdapters:
    """The LoRAs that requests name, beside a pipeline's weights: each file is loaded once, and none counts but in
    `using`. What the pipeline was found with, LoRAs of its own included, counts outside of it.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._names: dict[Path, str] = {}
        self._found: _Found | None = None  # before the first was loaded

    def check(self, chosen: LoraSet) -> None:
        """Refuse a set that the pipeline cannot take, before anything is loaded.

        Raises:
            InputError: the pipeline takes no LoRA, has some merged into its weights, or is compiled; or a file that is
                broken (`check_lora_weights`).
        """
        name = type(self._pipe).__name__
        if chosen.loras and not hasattr(self._pipe, "load_lora_weights"):
            raise InputError(f"{name} takes no LoRA; leave out {chosen}")
        if any(getattr(layer, "merged", False) for layer in _layers(self._pipe)):
            raise InputError(
                f"LoRAs are merged into the weights of this {name}, so that a request cannot have others: call its "
                "unfuse_lora() first"
            )
        if any(unwrapped(part) is not part for part in self._pipe.components.values()):
            raise InputError(
                f"this {name} is compiled, and requests with LoRAs of their own need one that is not"
            )
        for each in chosen.loras:
            if each.path not in self._names:
                check_lora_weights(each.file)

    def load(self, chosen: LoraSet) -> None:
        """Load what is not there yet.

        Raises:
            InputError: as `check`, or a LoRA that does not fit the model; nothing of it is left then.
        """
        missing = [each for each in chosen.loras if each.path not in self._names]
        if not missing and self._found is not None:
            return
        self.check(chosen)
        if self._found is None:
            self._found = _Found.of(self._pipe)
        for each in missing:
            before = {id(layer): _State.of(layer) for layer in _layers(self._pipe)}
            name = f"sagediff_row_{len(self._names)}"
            self._names[each.path] = name
            try:
                load_adapter(self._pipe, each.file, name)
                _check_products(self._pipe, name, each.file)
            except InputError:
                self.release()
                raise
            for layer in _layers(self._pipe):
                if id(layer) in before:
                    before[id(layer)].restore(layer)
                else:
                    layer.enable_adapters(False)

    @contextmanager
    def using(self, chosen: LoraSet | None) -> Iterator[None]:
        """Within, the set's LoRAs count and no others; None: what the pipeline was found with."""
        if chosen is None:
            yield
            return
        self.load(chosen)
        weights = {self._names[each.path]: each.weight for each in chosen.loras}
        states = [(layer, _State.of(layer)) for layer in _layers(self._pipe)]
        try:
            for layer, _ in states:
                own = [name for name in weights if name in layer.scaling]
                layer.enable_adapters(bool(own))
                if own:
                    layer.set_adapter(own)
                for name in own:
                    layer.set_scale(name, weights[name])
            yield
        finally:
            for layer, state in states:
                state.restore(layer)

    def release(self) -> None:
        """Leave the pipeline as it was found."""
        found, names = self._found, set(self._names.values())
        self._found, self._names = None, {}
        if found is None or not names:
            return
        for part in _modules(self._pipe):
            if mine := sorted(names & set(getattr(part, "peft_config", ()))):
                # diffusers' models have the one, transformers' the other
                (part.delete_adapters if hasattr(part, "delete_adapters") else part.delete_adapter)(mine)
            found.unwrap(part)
        found.restore_gradients()


@dataclass(frozen=True)
class _State:
    """What counts in a layer of peft's."""

    active: list[str]
    is_disabled: bool
    scaling: dict[str, float]
    gradients: list[tuple[Any, bool]]

    @classmethod
    def of(cls, layer: Any) -> _State:
        gradients = [(each, each.requires_grad) for each in layer.parameters()]
        return cls(list(layer.active_adapters), layer.disable_adapters, dict(layer.scaling), gradients)

    def restore(self, layer: Any) -> None:
        layer.set_adapter(self.active)
        layer.enable_adapters(not self.is_disabled)
        layer.scaling.update(self.scaling)
        for tensor, needs in self.gradients:
            tensor.requires_grad_(needs)


@dataclass(frozen=True)
class _Found:
    """A pipeline before any LoRA of a request was loaded."""

    layers: list[Any]  # that hold LoRAs
    gradients: list[tuple[Any, bool]]

    @classmethod
    def of(cls, pipe: Any) -> _Found:
        tensors = [(each, each.requires_grad) for part in _modules(pipe) for each in part.parameters()]
        return cls(_layers(pipe), tensors)

    def unwrap(self, part: Any) -> None:
        """Take out of a part the layers that are there for LoRAs since."""
        mine = set(map(id, self.layers))
        if not mine.isdisjoint(map(id, part.modules())):
            for name, layer in list(part.named_modules()):
                if _is_layer(layer) and id(layer) not in mine:
                    above, _, last = name.rpartition(".")
                    setattr(part.get_submodule(above), last, layer.get_base_layer())
        elif hasattr(part, "unload_lora"):  # diffusers'
            part.unload_lora()
        else:
            recurse_remove_peft_layers(part)  # type: ignore[no-untyped-call]

    def restore_gradients(self) -> None:
        for tensor, needs in self.gradients:
            if tensor.is_floating_point():
                tensor.requires_grad_(needs)


def _layers(pipe: Any) -> list[Any]:
    """The layers that peft put around a pipeline's own."""
    if "peft" not in sys.modules:
        return []
    return [each for part in _modules(pipe) for each in part.modules() if _is_layer(each)]


def _is_layer(module: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _check_products(pipe: Any, name: str, file: Path) -> None:
    """Raises InputError: what a LoRA adds to some weights is not finite."""
    for layer in _layers(pipe):
        if name in layer.scaling and not layer.get_delta_weight(name).isfinite().all():
            raise InputError(f"the LoRA {file} makes weights that are not finite")
