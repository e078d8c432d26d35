"""Quoting: values of unknown size and origin, as messages show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def shown(path: Path) -> str:
    """A path as messages show it: as it is, unless it has something that a terminal would obey."""
    return str(path) if str(path).isprintable() else repr(str(path))


def quoted(value: Any, max_length: int = 60) -> str:
    """``repr(value)``, which escapes what a terminal would obey, cut to about ``max_length`` characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= max_length else f"{value[: max_length - 1]!r}…"
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
