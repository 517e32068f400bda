"""The command line: `sagediff generate`, `sagediff plan`."""

from sagediff.cli.app import main

__all__ = ["main"]
