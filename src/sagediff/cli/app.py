"""The commands, and what an error looks like: one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

import sagediff
from sagediff.cli.commands.evaluate import bench, tune
from sagediff.cli.commands.generate import generate, plan
from sagediff.cli.commands.serve import serve
from sagediff.cli.commands.train import train
from sagediff.errors import InputError, SagediffError

# typer stood on the package click, and now brings a click of its own: either way its errors derive from this one
_UsageError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    name="sagediff",
    help="Generate many images from text, sharing the early denoising steps of prompts that mean nearly the same.",
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


for _command in (generate, plan, train, bench, tune, serve):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for wrong usage or input, 1 for a failure at work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except typer.Abort:
        return _complain("stopped", 130)
    except _UsageError as error:
        error.show(file=sys.stderr)
        return int(error.exit_code)
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
