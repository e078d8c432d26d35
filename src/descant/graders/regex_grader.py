"""RegexGrader: does the completion match a regular expression?"""

from __future__ import annotations

from descant.arguments import check_finite_number
from descant.errors import ConfigurationError
from descant.graders.base import MAX_CONCURRENT_THREADS, SHOWN_LENGTH
from descant.graders.bounded_pattern import BoundedPattern
from descant.graders.completion_grader import CompletionGrader
from descant.graders.concurrency_limit import ConcurrencyLimit
from descant.graders.daemon_calls import DaemonCalls
from descant.text import cut, quoted
from descant.threads.thread import StringThread


class RegexGrader(CompletionGrader):
    """Grade 1 if the pattern matches somewhere in the completion, else 0.

    Patterns are those of the ``regex`` library, a superset of Python's ``re``. Flags go inline: ``(?i)`` at the
    beginning ignores case, ``(?s)`` lets a dot match line ends.

    Args:
        pattern: the regular expression, as a string.
        grader_key: the grader's name.
        full_match: the pattern must match the whole completion, surrounding white space aside.
        timeout_s: seconds for one completion; some patterns take exponential time on some texts.

    Raises:
        ConfigurationError: a pattern that is not a regular expression, or a timeout that is not positive and finite.
        GradingError (when grading): no result in time, or the thread does not end in an assistant turn.
    """

    def __init__(
        self, pattern: str, grader_key: str = "regex", full_match: bool = False, timeout_s: float = 1.0
    ) -> None:
        super().__init__(grader_key)
        if not isinstance(pattern, str):
            raise ConfigurationError(
                f"pattern={pattern!r} must be a string; flags of a compiled pattern go inline, such as (?i)"
            )
        check_finite_number("timeout_s", timeout_s, above=0)
        self.pattern = BoundedPattern(pattern, timeout_s, full_match)
        self.full_match = full_match
        self._limit = ConcurrencyLimit(MAX_CONCURRENT_THREADS)
        self._calls = DaemonCalls(f"grader {grader_key!r}")

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether there is a match; the reasoning shows it."""
        pattern = f"'{cut(self.pattern.pattern)}'"  # not its repr, which would double every backslash
        async with self._limit.hold():
            match = await self._calls.run(self.pattern.search, completion.strip() if self.full_match else completion)
        if match is None:
            return False, f"{pattern} does not match{' the whole completion' if self.full_match else ''}"
        return True, f"{pattern} matches {quoted(match.group(), SHOWN_LENGTH)}"
