"""ExactMatchGrader: is the completion the reference, character by character?"""

from __future__ import annotations

from descant.errors import GradingError
from descant.graders.base import BaseGrader, Grade
from descant.threads.thread import StringThread


class ExactMatchGrader(BaseGrader):
    """Grade 1 if the completion equals the reference, surrounding white space aside, else 0.

    The reference is ``metadata[reference_key]``. Evaluation callbacks put the completion that a validation thread
    ends in there under the name ``reference``, so a dataset of prompts and completions needs no more.

    Raises (when grading):
        GradingError: the thread has no such reference, or does not end in an assistant turn.
    """

    def __init__(self, grader_key: str = "exact_match", reference_key: str = "reference") -> None:
        super().__init__(grader_key)
        self.reference_key = reference_key

    async def grade(self, sample: StringThread) -> Grade:
        """1.0 for a match, 0.0 otherwise; the reasoning shows both where they differ."""
        metadata = sample.metadata if isinstance(sample.metadata, dict) else {}
        reference = metadata.get(self.reference_key)
        if not isinstance(reference, str):
            raise GradingError(
                f"grader {self.grader_key!r} needs a string in metadata[{self.reference_key!r}], found {reference!r}; "
                "end validation threads in their completion or add the column"
            )
        completion = sample.completion()
        if completion is None:
            raise GradingError(f"grader {self.grader_key!r} needs a thread that ends in an assistant turn")
        matches = completion.strip() == reference.strip()
        value = float(matches)
        self.add_log({"score": value})
        return Grade(value, self.grader_key, None if matches else f"expected {reference!r}, got {completion!r}")
