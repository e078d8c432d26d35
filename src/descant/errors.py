"""The exceptions that descant raises.

A grader that raises is never wrapped: its own exception is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence


class DescantError(Exception):
    """Base of every error that descant raises on purpose."""


class ConfigurationError(DescantError, ValueError):
    """An argument that cannot work: the message names the value, what is allowed and what to do."""


class DatasetError(DescantError, ValueError):
    """A dataset file or thread that cannot be used.

    ``problems`` holds every reason as ``(place, reason)``; the message shows the first ten.
    """

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = (), num_shown: int = 10) -> None:
        self.problems = tuple(problems)
        lines = [f"  {place}: {reason}" for place, reason in self.problems[:num_shown]]
        lines += [f"  ... and {len(self.problems) - num_shown} more"] * (len(self.problems) > num_shown)
        super().__init__("\n".join([message, *lines]))


class RenderError(DescantError, ValueError):
    """The chat template refused a thread, or a turn cannot be located in what it rendered."""


class ModelLoadError(DescantError):
    """A model or tokenizer that cannot be loaded, with the path and what to do."""


class SaveError(DescantError):
    """A directory that cannot be written or must not be replaced, or that does not load again; the message says why.

    What was there before is as it was.
    """


class RequestError(DescantError):
    """One request to an engine failed. Other requests of the same batch are not affected."""


class SequenceTooLongError(RequestError):
    """A sequence that does not fit the model's context or the batch budget."""


class NoTrainedTokensError(RequestError):
    """A sequence in which no token carries weight."""


class NonFiniteSequenceError(RequestError):
    """A sequence whose log-probabilities, or whose loss, are NaN or infinite."""


class WeightsError(DescantError):
    """Weights that an engine does not hold (any more), or that do not fit its model."""


class WorkerDied(DescantError):
    """The process that evaluates has ended while it worked; the message says how. It is restarted for the next work."""


class NonFiniteError(DescantError):
    """A NaN or infinity where training needs a number."""


class GradingError(DescantError):
    """A grader returned something that is not a finite grade."""


class IgnoreGradeException(DescantError):
    """Raised by a grader that does not apply to a thread: it is left out of the mean, and counted apart from failures.

    Args:
        message: why the grader does not apply.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or "not applicable")


NOT_APPLICABLE = "not applicable: "
"""What the error of a sample begins with, in tables, whose grader does not apply to it."""


class ObserverError(DescantError):
    """A callback tried to train or update a model."""


class CallbackError(DescantError):
    """A callback failed under ``strict=True`` or ``on_error="raise"`` (``__cause__`` is its own exception), or ran
    on when its time was up."""


class RunLogError(DescantError):
    """The run log cannot be written or read: disk full, directory not writable, not a run, damaged."""
