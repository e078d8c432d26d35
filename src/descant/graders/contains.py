"""ContainsGrader: does the completion contain a text?"""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import normalize

from descant.errors import ConfigurationError
from descant.graders.base import SHOWN_LENGTH
from descant.graders.completion_grader import ReferenceGrader
from descant.text import quoted
from descant.threads.thread import StringThread


class ContainsGrader(ReferenceGrader):
    """Grade 1 if the completion contains the text, or all of several texts, else 0.

    It may stand anywhere, also in reasoning. Canonically equivalent Unicode is equal.

    Args:
        text: what the completion must contain: a string, or several, all of which are needed. None means the reference
            of each thread, ``metadata[reference_key]``, without surrounding white space.
        grader_key: the grader's name.
        reference_key: the reference's key in the metadata, if no text is given.
        ignore_case: treat upper and lower case as equal.

    Raises:
        ConfigurationError: no text, an empty one, or something that is not a string.
        GradingError (when grading): the thread has no such reference or an empty one, or does not end in an assistant
            turn.
    """

    def __init__(
        self,
        text: str | Sequence[str] | None = None,
        grader_key: str = "contains",
        reference_key: str = "reference",
        ignore_case: bool = False,
    ) -> None:
        super().__init__(grader_key, reference_key)
        self.text = None if text is None else _checked_texts(text)
        self.ignore_case = ignore_case

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether nothing is missing; the reasoning names what is missing, or else what was found."""
        texts = self.text
        if texts is None:
            texts = (self.reference_of(sample),)
        if missing := [text for text in texts if self._folded(text) not in self._folded(completion)]:
            return False, f"does not contain {', '.join(quoted(text, SHOWN_LENGTH) for text in missing)}"
        return True, f"contains {', '.join(quoted(text, SHOWN_LENGTH) for text in texts)}"

    def check_reference(self, sample: StringThread) -> None:
        """None is needed where texts were given."""
        if self.text is None:
            super().check_reference(sample)

    def _folded(self, text: str) -> str:
        text = normalize("NFC", text)
        return text.casefold() if self.ignore_case else text


def _checked_texts(text: object) -> tuple[str, ...]:
    texts = (text,) if isinstance(text, str) else tuple(text) if isinstance(text, Sequence) else ()
    if not texts or not all(isinstance(item, str) and item for item in texts):
        raise ConfigurationError(
            f"text={text!r} must be a string that is not empty, or a list of such strings; None is the reference"
        )
    return texts
