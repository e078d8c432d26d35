"""Log scopes: separate logs of graders, so that evaluations never mix with training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class LogScope(defaultdict[object, list[dict[str, Any]]]):
    """The log entries of every grader that is used inside the scope, by grader."""

    def __init__(self) -> None:
        super().__init__(list)


current_scope: ContextVar[LogScope | None] = ContextVar("descant_log_scope", default=None)
"""The innermost scope of this task, or None outside of every scope."""


@contextmanager
def log_scope(scope: LogScope | None = None) -> Iterator[LogScope]:
    """A fresh scope (or a given one again) for this task and everything that it starts.

    Inside, only the logs of this scope are read, written and cleared.
    """
    scope = LogScope() if scope is None else scope
    token = current_scope.set(scope)
    try:
        yield scope
    finally:
        current_scope.reset(token)
