"""Keys: what the keys of a message and the columns of a row mean, beside those of its text."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from descant.data.bad_row import BadRow, type_of
from descant.text import quoted

_NUMBER, _FLAG, _MASK = "a number from 0 on", "true, false, 1 or 0", "true or false (true: not trained)"
MARKS = {
    **dict.fromkeys(("weight", "loss_weight", "loss_scale"), _NUMBER),
    **dict.fromkeys(("loss", "train", "training", "trainable", "train_on_turn", "loss_mask", "step_loss_mask"), _FLAG),
    "masked": _MASK,
}
"""Marks: keys that say whether a turn, or all turns of a row, are trained, with the values that they may have."""
_MARK = re.compile(
    "(un)?train(ed|ing|able)?|loss(es)?|(un)?mask(s|ed)?|weight(s|ed)?|ignored?|skip(ped)?|excluded?|learn(ed|able)?|supervised?|finetuned?|backprop"
)
"""What has such a word in its name, and is none of the marks, could be one in a format that we do not know."""
_BESIDE_MARK = re.compile(
    "is|no|not|do|dont|on|to|per|only|for|of|in|all|last|this|should|use|with|turns?|tokens?|messages?|sample|example|row|"
    "roles?|assistant|user|system|prompt|completion|response|answer|inputs?|outputs?|history|details?|eos|labels?"
)
"""Other words make a column something else: ``train_on_inputs`` is a mark, ``train_id`` and ``weight_kg`` are not."""
_NO_MARKS = (("train", "loss"), ("training", "loss"), ("mask", "token"))
"""Names of what was measured, or of a token."""

_WRITE_REASONING = "write it into the content as the model's template does (often <think>…</think>), or leave it out"
_LEFT_OUT = {
    **dict.fromkeys(("reasoning", "thinking", "thought", "thoughts"), _WRITE_REASONING),
    **dict.fromkeys(("function", "functions"), "write it as 'tool_calls'"),
    **dict.fromkeys(
        ("tool", "tools", "refusal", "audio", "audios", "image", "images", "video", "videos", "documents"),
        "leave it out, or write it as content",
    ),
}
"""Words in keys of messages that some template renders and no thread can hold: dropped, the turn would be another."""
_LEFT_OUT_WHOLE = dict.fromkeys(
    ("content", "partial", "parts", "prefix", "text", "value"), "leave it out, or write it as content"
)
_LOST_COLUMNS = {
    "functions": "write them as 'tools'",
    "history": "write its turns as messages",
    "input_ids": "leave out what has been tokenised: threads are rendered with the model's own template",
    **dict.fromkeys(("system_prompt", "system_message", "system_instruction"), "rename it 'system'"),
    **dict.fromkeys(("chat_template_kwargs", "enable_thinking"), "leave the column out"),
    **dict.fromkeys(
        ("images", "image", "videos", "video", "audios", "audio"), "leave it out if the text makes sense without it"
    ),
}
"""Columns that other libraries train on and no thread can hold, and what to do about them."""
_EMPTY: tuple[Any, ...] = (None, "", [], {})


class UnreadKeys:
    """Counts the keys of messages that are not read, of all rows of a source."""

    def __init__(self) -> None:
        self.num_messages = 0
        self.counts: Counter[str] = Counter()

    def count(self, keys: Sequence[str]) -> None:
        """Count those of one message."""
        if keys:
            self.num_messages += 1
            self.counts.update(keys)

    def describe(self) -> str:
        """How many messages have such keys, and which."""
        first = [f"{quoted(key, 40)} ({count:,})" for key, count in self.counts.most_common(8)]
        more = [f"and {len(self.counts) - 8} more"] * (len(self.counts) > 8)
        return f"{self.num_messages:,} messages have keys that are not read: {', '.join(first + more)}"


def mark_of(values: Mapping[str, Any], place: str = "") -> float | None:
    """The weight that the marks of the message at this place, or of a row, say; None if there is no mark."""
    found: dict[str, float] = {}
    for key in [key for key in values if key in MARKS and values[key] is not None]:
        value, allowed = values[key], MARKS[key]
        is_number = isinstance(value, int | float) and 0 <= value <= sys.float_info.max
        if not is_number or (allowed != _NUMBER and value not in (0, 1)):
            where = f"{place}.{key}" if place else f"the column {key!r}"
            beside = "" if place else "; what says nothing about training belongs into a column 'metadata'"
            raise BadRow(f"{where} is {type_of(value)} ({quoted(value)}), not {allowed}{beside}")
        found[key] = 1.0 - value if allowed == _MASK else float(value)
    if len(found) > 1 and len(set(found.values())) > 1:
        both = " and ".join(f"{key!r}: {quoted(values[key])}" for key in found)
        raise BadRow(f"{place or 'the row'} has {both}, which do not say the same; keep one of them")
    return next(iter(found.values()), None)


def check_keys(values: Mapping[str, Any], read: frozenset[str], place: str) -> list[str]:
    """The keys of a message, or of a part of one, that say nothing about its text or training; others are refused."""
    unread = []
    for key, value in values.items():
        if value is None or key in read:
            continue
        words = _words(key)
        if _name(words) in read:
            raise BadRow(f"{place} has {quoted(key)}, which is not read; write {_name(words)!r}")
        if any(map(_MARK.fullmatch, words)) or words in (("label",), ("labels",)):
            raise BadRow(
                f"{place} has {quoted(key)} ({quoted(value)}), which is not read but may say what is trained; write "
                "'weight' instead (1 is trained, 0 is not), or leave it out"
            )
        if value in _EMPTY:
            continue
        advice = _LEFT_OUT_WHOLE.get(_name(words)) or next((_LEFT_OUT[word] for word in words if word in _LEFT_OUT), "")
        if advice and value is False:
            continue
        if advice:
            raise BadRow(f"{place} has {quoted(key)}, which a thread cannot hold; {advice}")
        unread.append(key)
    return unread


def check_columns(row: Mapping[Any, Any], read: frozenset[str]) -> None:
    """Raises a ``BadRow`` for a column that would be metadata and says what is trained, or holds some of it."""
    for name, value in row.items():
        if (reason := _about_column(name, read)) and value not in _EMPTY:
            raise BadRow(f"a column {quoted(name)}, {reason}")


@lru_cache(maxsize=1024)
def _about_column(name: Any, read: frozenset[str]) -> str:
    """Why a column cannot be metadata, or nothing."""
    words = _words(name)
    if (whole := _name(words)) in _LOST_COLUMNS:
        return f"which a thread cannot hold; {_LOST_COLUMNS[whole]}"
    if whole in read and whole != name:
        return f"which is not read; write {whole!r}"
    marks = [word for word in words if _MARK.fullmatch(word)]
    if words in _NO_MARKS:
        return ""
    if marks and all(word in marks or _BESIDE_MARK.fullmatch(word) for word in words):
        return (
            "which is not read here but may say what is trained; give the messages a 'weight' each (1 is trained, 0 is "
            "not), or move it into a column 'metadata' if it says something else"
        )
    return ""


@lru_cache(maxsize=1024)
def _words(key: Any) -> tuple[str, ...]:
    """The words of a key, in lower case: of ``lossMask``, ``loss-mask`` and ``Loss_mask `` the same."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z\W_]+", key) if isinstance(key, str) else ()
    return tuple(part.lower() for part in parts)


def _name(words: Iterable[str]) -> str:
    return "_".join(words)
