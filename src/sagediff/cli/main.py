"""The commands, and what an error looks like: one line on stderr and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, RepeatArgumentError

import sagediff
from sagediff.cli.command_table import COMMANDS, EPILOGUE
from sagediff.cli.help_page import HelpPage
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
    help_formatter=HelpPage(),
    help_epilogue=EPILOGUE,
    default_parameter=Parameter(
        negative=(),
        name_transform=flag_name,
        show_default=lambda value: None if value is None or value is False or value == () else value,
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
for _number, (_name, _command) in enumerate(COMMANDS.items()):
    app.command(
        f"sagediff.cli.commands.{_command.module}:{_name}",
        name=_name,
        help=_command.help,
        help_epilogue=_command.epilogue,
        sort_key=_number,
    )


@app.command(show=False)  # --version says it as well
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
    # torch's threads wait for each other asleep: by spinning a run takes many times as long where other programs want
    # the cores too, and is a little faster where none do
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("torchao", "torch.utils._pytree"):  # what torchao cannot load here, nothing of ours needs
        logging.getLogger(name).setLevel(logging.ERROR)
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
        rule = error.rule.replace(", or be None", "")  # which is to leave it out
        return complain(f"--{flag_name(error.option)} {rule}", 2)
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
        left = COMMANDS[tokens[0]].after_stop if tokens[0] in COMMANDS else "nothing was changed"
        return complain(f"stopped; {left}", 130)


def _run(tokens: list[str]) -> int:
    if not tokens:
        app(["--help"])
        return 2
    for number, token in enumerate(tokens, 1):
        try:
            token.encode()
        except UnicodeEncodeError:
            raise InputError(f"argument {number} is not UTF-8 text: {token[:200]}") from None
    if tokens[0] == "help":  # as other tools have it
        tokens = [*tokens[1:], "--help"]
    if not tokens[0].startswith("-") and tokens[0] not in (*COMMANDS, "version"):
        raise InputError(f"unknown command {tokens[0]!r}; there are {', '.join((*COMMANDS, 'version'))}")
    code = app(tokens, exit_on_error=False, print_error=False)
    return code if isinstance(code, int) else 0


def _system_error(error: OSError) -> int:
    """What no module has put into words: a name that cannot be one is the user's, the rest a failure at work."""
    name = "" if error.filename is None else f": {shortened(str(error.filename))}"
    return complain(f"{error.strerror or error}{name}", 2 if error.errno in _NAMES else 1)
