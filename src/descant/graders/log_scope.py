"""Log scopes: where graders write what they graded, so that an evaluation never mixes with training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class LogScope:
    """The log entries of every grader that is used inside the scope."""

    def __init__(self) -> None:
        self._entries: defaultdict[object, list[dict[str, Any]]] = defaultdict(list)

    def entries(self, owner: object) -> list[dict[str, Any]]:
        """The entries that ``owner`` has written in this scope; the list itself, to append to or clear."""
        return self._entries[owner]


_current_scope: ContextVar[LogScope | None] = ContextVar("descant_log_scope", default=None)


def current_scope() -> LogScope | None:
    """The innermost scope of this task (or thread started from it), or None outside of every scope."""
    return _current_scope.get()


@contextmanager
def log_scope(scope: LogScope | None = None) -> Iterator[LogScope]:
    """A fresh scope (or a given one again) for this task and everything it starts.

    Logs that are read, written or cleared inside stay inside.
    """
    scope = LogScope() if scope is None else scope
    token = _current_scope.set(scope)
    try:
        yield scope
    finally:
        _current_scope.reset(token)
