"""RemoteCalls: timeouts, retries and a concurrency limit for calls that leave the process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from descant.arguments import check_finite_number, check_whole_number
from descant.errors import DescantError
from descant.graders.concurrency_limit import ConcurrencyLimit

T = TypeVar("T")

MAX_BACKOFF_S = 60.0

# Another attempt would not cure them. ValueError and KeyError are retried: a judge that answered in an unexpected form
# may answer well the next time.
NOT_RETRIED = (
    DescantError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    MemoryError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
)


class RemoteCalls:
    """A concurrency limit, a timeout for each attempt, and retries with growing pauses.

    >>> calls = RemoteCalls(timeout_s=30.0)
    >>> answer = await calls.run(lambda: client.post(url, json=question))  # doctest: +SKIP

    Pauses double from attempt to attempt, up to a minute, and up to half of each is random, so that callers that failed
    together do not retry together (exponential backoff with equal jitter; M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015).

    Not retried (``NOT_RETRIED``) are descant's own errors, such as ``IgnoreGradeException``, and mistakes in the
    program, such as ``TypeError``. A call that knows that another attempt is useless (because of a wrong key, for
    example) raises a ``GradingError``.

    Args:
        timeout_s: seconds for one attempt, without its wait for others to complete; None is no timeout.
        max_attempts: attempts in all; 1 is no retry.
        max_concurrent: attempts in flight on one event loop; pauses do not count. None is no limit.
        backoff_s: the longest first pause in seconds.

    Raises:
        ConfigurationError: a number that cannot work.
    """

    def __init__(
        self,
        timeout_s: float | None = 60.0,
        max_attempts: int = 3,
        max_concurrent: int | None = 16,
        backoff_s: float = 0.5,
    ) -> None:
        if timeout_s is not None:
            check_finite_number("timeout_s", timeout_s, above=0)
        check_whole_number("max_attempts", max_attempts)
        check_finite_number("backoff_s", backoff_s, least=0)
        self.timeout_s = timeout_s
        self.max_attempts = max_attempts
        self.max_concurrent = max_concurrent
        self.backoff_s = backoff_s
        self._limit = ConcurrencyLimit(max_concurrent)
        self._random = random.Random()  # jitter must not draw from the generator that the user may have seeded

    async def run(self, make_call: Callable[[], Awaitable[T]]) -> T:
        """The result of awaiting ``make_call()``; each attempt calls it again.

        Raises:
            TimeoutError: the last attempt took longer than ``timeout_s``.
            Exception: what the last attempt raised, as it is, with a note on the number of attempts.
        """
        for number in range(1, self.max_attempts + 1):
            try:
                return await self._attempt(make_call)
            except Exception as error:
                if isinstance(error, NOT_RETRIED) or number == self.max_attempts:
                    reason = f"; a {type(error).__name__} is not retried" if isinstance(error, NOT_RETRIED) else ""
                    if self.max_attempts > 1:
                        error.add_note(f"given up after {number} of {self.max_attempts} attempts{reason}")
                    raise
            await asyncio.sleep(self._pause_s(number))
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, make_call: Callable[[], Awaitable[T]]) -> T:
        async with self._limit.hold():
            try:
                async with asyncio.timeout(self.timeout_s) as timer:
                    return await make_call()
            except TimeoutError as error:
                if not timer.expired():
                    raise  # the call's own
                raise TimeoutError(f"no answer within {self.timeout_s:g} s (timeout_s)") from error

    def _pause_s(self, attempt: int) -> float:
        longest = min(MAX_BACKOFF_S, self.backoff_s * 2.0 ** min(attempt - 1, 64))
        return longest * self._random.uniform(0.5, 1.0)
