"""The commands, and what an error looks like: one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

import sagediff
from sagediff.cli import options
from sagediff.errors import InputError, SagediffError

app = typer.Typer(
    name="sagediff",
    help="Generate many pictures from text, sharing the early denoising steps of prompts that mean nearly the same.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    pass


@app.command()
def version() -> None:
    """Print the version."""
    print(sagediff.__version__)


@app.command()
def generate(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = "demo",
    lora: options.Lora = None,
    out: Annotated[
        Path, typer.Option(help="Folder for pictures, metadata, report and contact sheet.")
    ] = Path("out"),
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    threshold: options.Threshold = None,
    share_ratio: options.ShareRatio = None,
    shared_guidance: options.SharedGuidance = "1.0",
    max_group_size: options.MaxGroupSize = 8,
    seed: Annotated[int, typer.Option(help="Every prompt's seed is derived from it.")] = 0,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    wave_size: Annotated[
        int, typer.Option(help="Most prompts carried at once; whole groups stay together.")
    ] = 64,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Most denoiser rows run at once [default: all]. Smaller takes less memory.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'mps' ...")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="'auto' (float16 on an accelerator, else float32), float32, float16 or bfloat16."),
    ] = "auto",
) -> None:
    """Generate one picture for every prompt."""
    from sagediff.cli.generate import GenerateRequest, run_generate
    from sagediff.cli.settings import run_settings
    from sagediff.prompts import gather_prompts

    texts = gather_prompts(prompts or [], prompt_file)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=threshold, share_ratio=share_ratio,
        shared_guidance=shared_guidance, max_group_size=max_group_size, scheduler=scheduler, encoder=encoder,
        lora=lora,
    )  # fmt: skip
    run_generate(GenerateRequest(texts, settings, out, seed, resume, wave_size, micro_batch, device, dtype))


@app.command()
def plan(
    prompts: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = "demo",
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    threshold: options.Threshold = None,
    share_ratio: options.ShareRatio = None,
    shared_guidance: options.SharedGuidance = "1.0",
    max_group_size: options.MaxGroupSize = 8,
    scheduler: options.Scheduler = None,
    encoder: options.Encoder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures and groups as JSON.")] = False,
) -> None:
    """Say how prompts would be grouped and what that saves; the denoiser is not loaded."""
    from sagediff.cli.plan import run_plan
    from sagediff.cli.settings import run_settings
    from sagediff.prompts import gather_prompts

    texts = gather_prompts(prompts or [], prompt_file)
    settings = run_settings(
        model=model, steps=steps, guidance=guidance, threshold=threshold, share_ratio=share_ratio,
        shared_guidance=shared_guidance, max_group_size=max_group_size, scheduler=scheduler, encoder=encoder,
    )  # fmt: skip
    run_plan(texts, settings, as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for wrong usage or input, 1 for a failure at work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.exceptions.Abort:
        return _complain("stopped", 130)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except InputError as error:
        return _complain(str(error), 2)
    except SagediffError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("stopped; what was finished is kept, --resume goes on", 130)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"sagediff: {message}", file=sys.stderr)
    return code
