"""BoundedPattern: a regular expression with a time limit."""

from __future__ import annotations

import time
from typing import Any

import regex  # type: ignore[import-untyped]

from descant.errors import ConfigurationError, GradingError


class BoundedPattern:
    """A regular expression of the ``regex`` library with a time limit. Other worker threads run while it searches.

    Some patterns take exponential time on some texts, and a model may write such a text.

    Args:
        pattern: the regular expression.
        timeout_s: about how many seconds one search may take; at least half of them while other threads compute.
        full_match: match whole texts, instead of anywhere in them.

    Raises:
        ConfigurationError: the pattern is not a regular expression.
    """

    def __init__(self, pattern: str, timeout_s: float, full_match: bool = False) -> None:
        try:
            compiled = regex.compile(pattern)
        except regex.error as error:
            before, after = pattern[: error.pos], pattern[error.pos or 0 :]
            place = f", between {before!r} and {after!r}" if after else ", where it ends"
            raise ConfigurationError(f"pattern={pattern!r} is not a regular expression: {error}{place}") from None
        self._find = compiled.fullmatch if full_match else compiled.search
        self.pattern = pattern
        self.timeout_s = timeout_s

    def search(self, text: str) -> Any:
        """The first match, or None.

        Raises:
            GradingError: no result in time.
        """
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
