"""`python -m sagediff` is `sagediff`."""

import sys


def run() -> int:
    """The command line, with a line for Ctrl-C while its modules are still being read."""
    try:
        from sagediff.collector import own_process

        own_process()
        from sagediff.cli import main

        return main()
    except KeyboardInterrupt:
        print("sagediff: stopped; nothing was changed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
