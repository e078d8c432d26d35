"""json_text: what a command prints with --json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite, isnan
from typing import Any


def json_text(value: Any) -> str:
    """One JSON document in ASCII, so that no terminal obeys what is in it and every locale can print it.

    Numbers that JSON does not have are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
    """
    return json.dumps(_finite(value), allow_nan=False, indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
