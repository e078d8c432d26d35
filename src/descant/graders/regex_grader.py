"""RegexGrader: does the completion match a regular expression?"""

from __future__ import annotations

import time
from typing import Any

import regex  # type: ignore[import-untyped]

from descant.arguments import check_finite_number
from descant.errors import ConfigurationError, GradingError
from descant.graders.base import MAX_CONCURRENT_THREADS, SHOWN_LENGTH
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
        timeout_s: about how many seconds one completion may take (at least half of them while other threads compute):
            some patterns take exponential time on some texts, and a model may write such a text.

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
        try:
            compiled = regex.compile(pattern)
        except regex.error as error:
            before, after = pattern[: error.pos], pattern[error.pos or 0 :]
            where = f", between {before!r} and {after!r}" if after else ", where it ends"
            raise ConfigurationError(f"pattern={pattern!r} is not a regular expression: {error}{where}") from None
        self._find = compiled.fullmatch if full_match else compiled.search
        self.pattern = pattern
        self.full_match = full_match
        self.timeout_s = timeout_s
        self._limit = ConcurrencyLimit(MAX_CONCURRENT_THREADS)
        self._calls = DaemonCalls(f"grader {grader_key!r}")

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether there is a match; the reasoning shows it."""
        pattern = f"'{cut(self.pattern)}'"  # not its repr, which would double every backslash
        async with self._limit.hold():
            match = await self._calls.run(self.search, completion.strip() if self.full_match else completion)
        if match is None:
            return False, f"{pattern} does not match{' the whole completion' if self.full_match else ''}"
        return True, f"{pattern} matches {quoted(match.group(), SHOWN_LENGTH)}"

    def search(self, text: str) -> Any:
        """The first match, or None; other threads run while it searches. Raises a ``GradingError`` when time is up."""
        end = time.monotonic() + self.timeout_s
        limit = self.timeout_s
        while True:
            begin = time.monotonic()
            try:
                return self._find(text, timeout=limit, concurrent=True)
            except TimeoutError:
                # regex counts the processor time of the whole process: while a model computes on eight cores, its
                # second is over after an eighth of one. Each attempt begins anew: a shorter one would be useless.
                spent, left = time.monotonic() - begin, end - time.monotonic()
                if left <= spent:
                    raise GradingError(
                        f"pattern {self.pattern!r} had no result on a text of {len(text)} characters after "
                        f"{self.timeout_s:g} s; repetition that can match a text in many ways, as in (a|aa)+, takes "
                        "exponential time"
                    ) from None
                limit *= min(2.0, left / max(spent, 1e-9))
