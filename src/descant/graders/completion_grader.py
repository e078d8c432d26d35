"""CompletionGrader: base of the graders of a completion's text that pass or fail it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from descant.arguments import check_text
from descant.errors import GradingError
from descant.graders.base import SHOWN_LENGTH, BaseGrader, Grade
from descant.text import quoted
from descant.threads.thread import StringThread


class CompletionGrader(BaseGrader):
    """Grade 1 if the completion passes ``check``, else 0.

    Raises (when grading):
        GradingError: the thread does not end in an assistant turn.
    """

    async def grade(self, sample: StringThread) -> Grade:
        """1.0 or 0.0, with the reasoning of ``check``."""
        completion = sample.completion()
        if completion is None:
            raise GradingError(
                f"grader {self.grader_key!r} needs a thread that ends in an assistant turn, the completion; "
                f"{sample.source or 'the thread'} does not"
            )
        passes, reasoning = await self.check(completion, sample)
        value = float(passes)
        self.add_log({"score": value})
        return Grade(value, self.grader_key, reasoning)

    @abstractmethod
    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str | None]:
        """Whether the completion passes, and why."""


class ReferenceGrader(CompletionGrader):
    """Base of the graders that compare with ``metadata[reference_key]``.

    Evaluation callbacks store the completion of a validation thread there under the name ``reference``, so that a
    dataset of prompts and completions is enough. Without a reference that can be compared with there is no grade: an
    evaluation in which no thread has one is refused, and a single thread fails.

    The completion is what the model wrote, reasoning included: nothing is taken out of it.
    """

    def __init__(self, grader_key: str, reference_key: str) -> None:
        super().__init__(grader_key)
        check_text("reference_key", reference_key)
        self.reference_key = reference_key

    def reference_of(self, sample: StringThread) -> str:
        """The reference, without surrounding white space; a ``GradingError`` if it is not a string, or empty."""
        reference = self.reference_value(sample)
        if not isinstance(reference, str) or not reference.strip():
            raise self.unusable_reference(sample, "a string that is not empty")
        return reference.strip()

    def unusable(self, prompt: StringThread) -> str | None:
        """Why the reference cannot be compared with, if it cannot."""
        try:
            self.check_reference(prompt)
        except GradingError as error:
            return str(error)
        return None

    def check_reference(self, sample: StringThread) -> None:
        """Raises a ``GradingError`` if the reference cannot be compared with."""
        self.reference_of(sample)

    def reference_value(self, sample: StringThread) -> Any:
        """The value under the reference's key; None if there is none."""
        return sample.metadata.get(self.reference_key) if isinstance(sample.metadata, dict) else None

    def unusable_reference(self, sample: StringThread, needed: str) -> GradingError:
        """The error for a reference that is not ``needed``."""
        value = self.reference_value(sample)
        place = f" of {sample.source}" if sample.source else ""
        advice = "; end validation threads in their completion or add the column" if value is None else ""
        return GradingError(
            f"grader {self.grader_key!r} needs {needed} in metadata[{self.reference_key!r}]{place}, "
            f"found {quoted(value, SHOWN_LENGTH)}{advice}"
        )
