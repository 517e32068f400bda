"""Every error that sagediff raises on purpose.

    SagediffError
    |-- InputError (also a ValueError)   what the user gave cannot work; nothing has run, nothing was written
    |   |-- OptionError                  an option of the wrong type or out of range (`options.py`)
    |   |-- PlanError                    a share plan that is not one
    |   `-- UnsupportedPipelineError     a pipeline, denoiser or scheduler that sharing does not know
    |-- OutputError                      the work itself failed: disk full, folder not writable
    |-- ModelError                       the model gave numbers that are not finite
    `-- StoppedError                     nobody wants a run to go on; nothing is wrong

The command line exits with 2 for an InputError and with 1 for any other SagediffError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class SagediffError(Exception):
    """Root of the tree."""


class InputError(SagediffError, ValueError):
    """What the user gave cannot work; the message says what, where, and what to do."""


class PlanError(InputError):
    """A share plan whose partitions do not refine, or that does not cover every prompt once."""


class UnsupportedPipelineError(InputError):
    """A pipeline, denoiser or scheduler that shared sampling does not know."""


class OutputError(SagediffError):
    """Writing results failed; what was finished before is kept."""


class ModelError(SagediffError):
    """The model gave numbers that are not finite, so some images are none; the message names their prompts.

    Attributes:
        bad: numbers of the requests without an image, from 0, in the order in which they were given.
        images: images (or videos) of all requests in that order; None for the `bad` ones, and for those that
            had not been run.  None where nothing is left of the others.
    """

    def __init__(self, message: str, bad: Sequence[int] = (), images: Sequence[Any] | None = None) -> None:
        super().__init__(message)
        self.bad = tuple(bad)
        self.images = None if images is None else list(images)


class StoppedError(SagediffError):
    """Nobody wants the run to go on: every prompt was dropped, or a signal came; nothing is wrong."""


def first_line(error: BaseException) -> str:
    """An error of somebody else's in one line, for a message; its class where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
