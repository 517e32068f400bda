"""Every error that sagediff raises on purpose.

    SagediffError
    |-- InputError (also a ValueError)   what the user gave cannot work; nothing has run, nothing was written
    |   |-- OptionError                  an option of the wrong type or out of range (`options.py`)
    |   |-- PlanError                    a share plan that is not one
    |   `-- UnsupportedPipelineError     a pipeline, denoiser or scheduler that sharing does not know
    |-- OutputError                      the work itself failed: disk full, folder not writable
    `-- StoppedError                     nobody wants a run to go on; nothing is wrong

The command line exits with 2 for an InputError and with 1 for any other SagediffError.
"""

from __future__ import annotations


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


class StoppedError(SagediffError):
    """Nobody wants the run to go on: every prompt was dropped, or a signal came; nothing is wrong."""
