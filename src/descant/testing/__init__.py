"""The conformance kit: whether a callback, grader, logger or placement of yours keeps the promises of descant's own.

Each check is one line in a test: it raises an ``AssertionError`` that says what differs, or returns a ``Report``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from descant.testing.callback_check import check_callback
    from descant.testing.grader_check import check_grader
    from descant.testing.logger_check import check_logger
    from descant.testing.placement_check import check_placement
    from descant.testing.report import Report
    from descant.testing.tiny_model import save_tiny_model

_HOME_OF = {
    "Report": "report",
    "check_callback": "callback_check",
    "check_grader": "grader_check",
    "check_logger": "logger_check",
    "check_placement": "placement_check",
    "save_tiny_model": "tiny_model",
}

__all__ = ["Report", "check_callback", "check_grader", "check_logger", "check_placement", "save_tiny_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
