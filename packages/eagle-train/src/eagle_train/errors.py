"""The errors that end a run on purpose: each message says what was wrong and how to mend it.

The command line prints them without a traceback. Anything else that escapes is a defect and keeps its traceback.
"""

from __future__ import annotations


class RunError(Exception):
    """Base of the errors below; catching it catches everything that a run refuses on purpose."""


class RecipeError(RunError, ValueError):
    """A recipe that cannot be used; the message names the file, the key and the mend."""


class CheckpointError(RunError):
    """A checkpoint that is damaged or belongs to another run."""


class TrainingError(RunError):
    """Training cannot go on: no sample can be loaded, or gradients are not finite."""


class RankError(RunError):
    """One of the processes of a run failed or was killed; the message names its rank."""


class Interrupted(Exception):
    """The user asked the run to stop; a checkpoint has been written. Not an error: nothing is to be mended."""


__all__ = ["CheckpointError", "Interrupted", "RankError", "RecipeError", "RunError", "TrainingError"]
