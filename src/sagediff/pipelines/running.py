"""How a pipeline's weights come to their device, and whether its denoiser is compiled."""

from __future__ import annotations

from typing import Any

from sagediff.denoiser.guiders import is_modular
from sagediff.denoiser.lookup import denoisers_of
from sagediff.denoiser.private_names import repeated_blocks
from sagediff.errors import InputError, first_line
from sagediff.pipelines.single_file import DENOISERS


def offload(pipe: Any, how: str, device: str) -> None:
    """Keep weights in the main memory, and bring them to the device when they are needed.

    Args:
        how: "model": a whole part at a time; "group": layer by layer, the next one while one runs, where the device can
            do both; "sequential": layer by layer.

    Raises:
        InputError: this machine or the pipeline cannot do it.
    """
    import torch

    kind = torch.device(device).type
    if how == "sequential" and kind == "cpu":
        raise InputError(
            "--offload sequential needs an accelerator, and there is nothing to gain from it on the CPU; leave it out"
        )
    if is_modular(pipe):
        raise InputError(
            f"--offload {how}: {type(pipe).__name__} is a modular pipeline, which diffusers offloads by a "
            f"ComponentsManager of your own; leave it out"
        )
    try:
        if how == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif how == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.enable_group_offload(
                torch.device(device), offload_type="leaf_level", use_stream=kind == "cuda"
            )
    except (RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"--offload {how} does not work here: {first_line(error)}") from error


def check_compiler(device: str) -> None:
    """Refuse to compile where there is no compiler, by compiling a line.

    Raises:
        InputError: says what is missing.
    """
    import torch

    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing
        raise InputError(f"--compile does not work here: {first_line(error)}") from error


def compile_denoisers(pipe: Any, **options: Any) -> None:
    """Compile a pipeline's denoisers: the blocks that repeat, where the class names them, which takes least time; else
    the whole.

    Args:
        options: of `torch.compile`.
    """
    import torch

    modules = denoisers_of(pipe)
    for name in DENOISERS:
        module: Any = getattr(pipe, name, None)
        if not any(module is each for each in modules):
            continue
        if repeated_blocks(module):
            module.compile_repeated_blocks(**options)
        else:
            setattr(pipe, name, torch.compile(module, **options))
