"""Text for people: what comes from outside made harmless and short, numbers and seconds made readable."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite, isnan
from pathlib import Path
from typing import Any

_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # Unicode's control, format and separator characters


def printable(text: str, max_length: int | None = None) -> str:
    """``text`` on one line, cut to ``max_length`` characters, with control and format characters escaped.

    Escape sequences that would colour, clear or retitle a terminal, and characters that reverse the direction of
    text, are shown as what they are.
    """
    text = text if max_length is None else cut(text, max_length)
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _ESCAPED else character
        for character in text
    )


def cut(text: str, max_length: int = 200) -> str:
    """``text`` with an ellipsis for what is beyond ``max_length`` characters."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def quoted(value: Any, max_length: int = 60) -> str:
    """``repr(value)``, which escapes what a terminal would obey, cut to about ``max_length`` characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= max_length else f"{value[: max_length - 1]!r}…"
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    return cut(text if text.isprintable() else repr(text)[1:-1], max_length)


def cell_text(value: Any) -> str:
    """A cell of a sample table: nothing for None, ``figure`` for numbers, and quotes for a text that is empty."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return figure(value)
    return str(value) or "''"


def shown(path: Path) -> str:
    """A path as it is, unless it has something that a terminal would obey: then its ``repr``."""
    return str(path) if str(path).isprintable() else repr(str(path))


def shortened(name: str, max_bytes: int) -> str:
    """A name of at most ``max_bytes`` as UTF-8: where it is longer, its end becomes a hash of the whole."""
    encoded = name.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return name
    return with_hash(encoded[: max_bytes - 13].decode("utf-8", "ignore"), name)


def with_hash(name: str, key: str) -> str:
    """The name, a dash, and 12 digits of a hash of the key that it was made from."""
    return f"{name}-{hashlib.sha256(key.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"


def figure(value: float) -> str:
    """A number with four significant digits; whole numbers in full."""
    if isnan(value):
        return "NaN"
    if isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds with two or three digits: ``"35 ms"``, ``"0.35 s"``, ``"42 s"``, ``"12.5 min"``, ``"3 h 05 min"``."""
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.2g} s" if 0 < seconds < 0.995 else f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.3g} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def did_you_mean(wanted: str, known: Iterable[str], otherwise: str = "") -> str:
    """``did you mean 'x'?`` with the known name that is closest, or else ``otherwise``."""
    close = get_close_matches(wanted, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise
