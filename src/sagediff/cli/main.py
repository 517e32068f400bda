"""The commands, and what an error looks like: one line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, RepeatArgumentError

import sagediff
from sagediff.cli.options import flag_name
from sagediff.cli.terminal import complain, flush_stdout, give_up_stdout, make_streams_lenient, stdout_is_read
from sagediff.errors import InputError, SagediffError
from sagediff.files.text_input import shortened
from sagediff.options import OptionError

app = App(
    name="sagediff",
    help="Generate many images from text; similar prompts share their early denoising steps.",
    version=sagediff.__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `main` has a line for it
    default_parameter=Parameter(
        negative=(), name_transform=flag_name, show_default=lambda value: value or None
    ),
)
_NAMES = {
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EACCES,
    errno.EINVAL,
}
_AFTER_STOP = {
    **dict.fromkeys(("generate", "train", "bench"), "what was finished is kept, --resume goes on"),
    "tune": "what was finished is kept, the same command goes on",
    "serve": "requests under way were not answered",
}
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
    """Run the command line; returns the exit code.

    0, 2 for wrong usage or input, 1 for a failure at work (silent where nobody reads stdout any more, as in `| head`),
    and 130 after Ctrl-C.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    tokens = sys.argv[1:] if arguments is None else list(arguments)
    make_streams_lenient()
    try:
        code = _run(tokens)
        flush_stdout()
        return code
    except RepeatArgumentError as error:
        return complain(f"{error.token.keyword} is given more than once; give it once", 2)
    except CycloptsError as error:
        return complain(str(error), 2)
    except OptionError as error:
        return complain(f"--{flag_name(error.option)} {error.rule}", 2)
    except InputError as error:
        return complain(str(error), 2)
    except SagediffError as error:
        return complain(str(error), 1)
    except OSError as error:
        if not stdout_is_read():
            give_up_stdout()
            return 1  # as rich, which prints tables and help, ends there
        return _system_error(error)
    except MemoryError:
        return complain("there is not enough memory", 1)
    except KeyboardInterrupt:
        give_up_stdout()
        return complain(f"stopped; {_AFTER_STOP.get(tokens[0], 'nothing was changed')}", 130)


def _run(tokens: list[str]) -> int:
    if not tokens:
        app(["--help"])
        return 2
    for number, token in enumerate(tokens, 1):
        try:
            token.encode()
        except UnicodeEncodeError:
            raise InputError(f"argument {number} is not UTF-8 text: {token[:200]}") from None
    if not tokens[0].startswith("-") and tokens[0] not in (*_COMMANDS, "version"):
        raise InputError(f"unknown command {tokens[0]!r}; there are {', '.join((*_COMMANDS, 'version'))}")
    code = app(tokens, exit_on_error=False, print_error=False)
    return code if isinstance(code, int) else 0


def _system_error(error: OSError) -> int:
    """What no module has put into words: a name that cannot be one is the user's, the rest a failure at work."""
    name = "" if error.filename is None else f": {shortened(str(error.filename))}"
    return complain(f"{error.strerror or error}{name}", 2 if error.errno in _NAMES else 1)
