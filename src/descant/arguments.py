"""Arguments: what a user gives, checked in the same words everywhere."""

from __future__ import annotations

import os
from math import isfinite
from numbers import Real
from typing import Any, TypeGuard

from descant.errors import ConfigurationError


def check_whole_number(name: str, value: Any, *, least: int = 1, or_none: bool = False) -> None:
    """Raises ConfigurationError if the value is not a whole number of at least ``least``; a bool is not one.

    None is allowed if ``or_none``.
    """
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        alternative = ", or None" if or_none else ""
        raise ConfigurationError(f"{name}={value!r} must be a whole number of at least {least}{alternative}")


def check_finite_number(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> None:
    """Raises ConfigurationError unless the value is a finite number, of at least ``least``, above ``above``."""
    if not is_finite_number(value) or (least is not None and value < least) or (above is not None and value <= above):
        limit = "" if least is None else f" of at least {least:g}"
        limit += "" if above is None else f" above {above:g}"
        raise ConfigurationError(f"{name}={value!r} must be a finite number{limit}")


def check_text(name: str, value: Any) -> None:
    """Raises ConfigurationError if the value is not text, or empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name}={value!r} must be a string that is not empty")


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether the value is a number that a float can hold, neither NaN nor infinite; a bool is not one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer that is too large
        return False


def as_path(path: str | os.PathLike[str]) -> str:
    """A directory or hub id as it was given, with ``~`` expanded."""
    return os.path.expanduser(os.fspath(path))
