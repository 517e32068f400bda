"""The command line: parse, call, print."""

from sagediff.cli.main import main

__all__ = ["main"]
