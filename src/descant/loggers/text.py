"""Text and names from outside, made harmless before they are shown or handed on."""

from __future__ import annotations

import hashlib
import unicodedata


def printable(text: str, max_length: int | None = None) -> str:
    """``text`` on one line, with control and format characters escaped, cut to ``max_length`` characters.

    Escape sequences that would colour, clear or retitle a terminal, and characters that reverse the direction of
    text, are shown as what they are.
    """
    if max_length is not None and len(text) > max_length:
        text = text[: max_length - 1] + "…"
    return "".join(_escape(character) for character in text)


def shortened(name: str, max_bytes: int) -> str:
    """A name of at most ``max_bytes`` as UTF-8: where it is longer, its end becomes a hash of the whole."""
    encoded = name.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return name
    return with_hash(encoded[: max_bytes - 13].decode("utf-8", "ignore"), name)


def with_hash(name: str, key: str) -> str:
    """The name and behind it a hash of the key that it was made from, 13 characters in all."""
    return f"{name}-{hashlib.sha256(key.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"


def _escape(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character
