"""ExactMatchGrader: is the completion the reference, character by character?"""

from __future__ import annotations

from descant.graders.base import SHOWN_LENGTH
from descant.graders.completion_grader import ReferenceGrader
from descant.text import quoted
from descant.threads.thread import StringThread


class ExactMatchGrader(ReferenceGrader):
    """Grade 1 if the completion equals the reference, surrounding white space aside, else 0.

    The reference is ``metadata[reference_key]``. Evaluation callbacks put the completion that a validation thread
    ends in there under the name ``reference``, so a dataset of prompts and completions needs no more.

    Raises (when grading):
        GradingError: the thread has no such reference, or does not end in an assistant turn.
    """

    def __init__(self, grader_key: str = "exact_match", reference_key: str = "reference") -> None:
        super().__init__(grader_key, reference_key)

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str | None]:
        """Whether they are equal; the reasoning shows both where they differ."""
        reference = self.reference_of(sample)
        if completion.strip() == reference.strip():
            return True, None
        return False, f"expected {quoted(reference, SHOWN_LENGTH)}, got {quoted(completion, SHOWN_LENGTH)}"
