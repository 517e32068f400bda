"""The commands, and what an error looks like: one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

import sagediff
from sagediff.cli.options import FLAGS, flag_name, spelled
from sagediff.errors import InputError, SagediffError

app = App(
    name="sagediff",
    help="Generate many images from text; similar prompts share their early denoising steps.",
    version=sagediff.__version__,
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(
        negative=(), name_transform=flag_name, show_default=lambda value: value or None
    ),
)
_COMMANDS = {  # each is imported when it is called
    "generate": "Generate one image per prompt.",
    "plan": "Show how prompts would be grouped and what that saves, without loading the denoiser.",
    "train": "Teach a model to share: train a LoRA on groups of captioned images.",
    "bench": "Compare independent and shared sampling, before and after training, in one table.",
    "tune": "Find the sharing that saves most within a quality budget, and write it as a file for --policy.",
    "serve": "Serve the model as an OpenAI-compatible images server.",
}
for _name, _help in _COMMANDS.items():
    _module = "show_plan" if _name == "plan" else _name  # `plan` is a package
    app.command(f"sagediff.cli.commands.{_module}:{_name}", name=_name, help=_help)


@app.command
def version() -> None:
    """Print the version."""
    print(sagediff.__version__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for wrong usage or input, 1 for a failure at work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    tokens = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(str(error), 2)
    except InputError as error:
        return _complain(spelled(str(error), FLAGS), 2)
    except SagediffError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("stopped; what was finished is kept, --resume goes on", 130)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"sagediff: {message}", file=sys.stderr)
    return code
