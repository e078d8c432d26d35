"""Arguments: what a user gives, checked in the same words everywhere."""

from __future__ import annotations

import os
from math import isfinite
from numbers import Real
from typing import Any, TypeGuard

from descant.errors import ConfigurationError


def check_whole_number(name: str, value: Any, *, least: int = 1, or_none: bool = False) -> None:
    """Raises ConfigurationError if the value is not a whole number of at least ``least``; a bool is not one.

    None is one if ``or_none``.
    """
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        alternative = ", or None" if or_none else ""
        raise ConfigurationError(f"{name}={value!r} must be a whole number of at least {least}{alternative}")


def check_finite_number(name: str, value: Any, *, least: float | None = None) -> None:
    """Raises ConfigurationError if the value is not a finite number (of at least ``least``). A bool is not one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not is_number or (least is not None and value < least):
        limit = "" if least is None else f" of at least {least:g}"
        raise ConfigurationError(f"{name}={value!r} must be a finite number{limit}")


def check_text(name: str, value: Any) -> None:
    """Raises ConfigurationError if the value is not text, or empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name}={value!r} must be a string that is not empty")


def as_path(path: str | os.PathLike[str]) -> str:
    """A directory or hub id as it was given, with ``~`` expanded."""
    return os.path.expanduser(os.fspath(path))


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a number that a float can hold, neither NaN nor infinite; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer that is too large
        return False
