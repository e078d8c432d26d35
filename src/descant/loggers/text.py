"""Model output is untrusted text: made harmless before it is shown."""

from __future__ import annotations

import unicodedata


def printable(text: str, max_length: int | None = None) -> str:
    """``text`` on one line, with control and format characters escaped, cut to ``max_length`` characters.

    Escape sequences that would colour, clear or retitle a terminal, and characters that reverse the direction of
    text, are shown as what they are.
    """
    if max_length is not None and len(text) > max_length:
        text = text[: max_length - 1] + "…"
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character
