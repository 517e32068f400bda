"""A run's LoRAs, merged into a pipeline's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagediff.denoiser.lora_adapters import load_adapter
from sagediff.errors import InputError, first_line
from sagediff.files.lora_files import Lora
from sagediff.pipelines.quantized import is_quantized


def merge_loras(pipe: Any, loras: Sequence[Lora], *, apart: bool = False) -> None:
    """Merge LoRAs into a pipeline's weights, as diffusers adds up its adapters; beside weights that are quantised they
    stay as they are. Says on stderr how many tensors of one fit, where not all do.

    Args:
        apart: leave them as they are beside any weights, so that others can take their place.

    Raises:
        InputError: the pipeline takes none, less than half of a LoRA's tensors fit, one has another shape, or the
            merged weights are not finite.
    """
    if not loras:
        return
    names = [f"sagediff_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        load_adapter(pipe, lora.file, name)
    pipe.set_adapters(names, [lora.weight for lora in loras])
    if apart or any(map(is_quantized, pipe.components.values())):
        return  # quantised weights cannot be added to; the LoRAs stay beside them
    try:
        pipe.fuse_lora(safe_fusing=True, adapter_names=names)
    except ValueError as error:  # what peft says of values that are not finite
        files = " and ".join(str(lora.file) for lora in loras)
        which = f"the LoRA {files} makes" if len(loras) == 1 else f"the LoRAs {files} make"
        raise InputError(f"{which} weights that are not finite: {first_line(error)}") from error
    pipe.unload_lora_weights()
