"""ExactMatchGrader: is the completion the reference, character by character?"""

from __future__ import annotations

from unicodedata import normalize

from descant.graders.base import SHOWN_LENGTH
from descant.graders.completion_grader import ReferenceGrader
from descant.text import quoted
from descant.threads.thread import StringThread


class ExactMatchGrader(ReferenceGrader):
    """Grade 1 if the completion equals the reference, surrounding white space aside, else 0.

    Canonically equivalent Unicode (an é as one character or as e and an accent) is equal; upper and lower case are not.
    All that the model wrote counts: an answer behind ``<think>...</think>`` equals a reference that has the same
    reasoning only. ``RegexGrader`` or a function grades what stands behind it.

    The reference is ``metadata[reference_key]``; see ``ReferenceGrader``.

    Raises (when grading):
        GradingError: the thread has no such reference or an empty one, or does not end in an assistant turn.
    """

    def __init__(self, grader_key: str = "exact_match", reference_key: str = "reference") -> None:
        super().__init__(grader_key, reference_key)

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str | None]:
        """Whether they are equal; if not, the reasoning shows both."""
        reference = self.reference_of(sample)
        if normalize("NFC", completion.strip()) == normalize("NFC", reference):
            return True, None
        return False, f"expected {quoted(reference, SHOWN_LENGTH)}, got {quoted(completion, SHOWN_LENGTH)}"
