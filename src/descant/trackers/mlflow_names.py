"""Names of metrics, params and tags as MLflow takes them."""

from __future__ import annotations

import re

from descant.text import with_hash

_MAX_LENGTH = 250


def mlflow_name(key: str) -> str:
    """The key if MLflow takes it, else one made from it, always the same.

    MLflow takes letters, digits and ``_ - . :``, space and ``/`` between parts that are not empty, ``.`` or ``..``, 250
    in all. ``@`` becomes ``_at_``, ``%`` ``_percent_``, and other characters their code in hexadecimal. An empty part
    becomes ``_``, one of dots only gets ``_`` behind it, and a name that begins with two dots ``_`` before it. Of a
    name that is too long the end becomes a hash.

    >>> mlflow_name("validation/pass@4"), mlflow_name("a//b+c")
    ('validation/pass_at_4', 'a/_/b_x2b_c')
    """
    name = re.sub(r"[^\w.\- :/]", _spelled, key)
    name = "/".join(_part(part) for part in name.split("/"))
    if name.startswith(".."):
        name = f"_{name}"
    return name if len(name) <= _MAX_LENGTH else with_hash(name[: _MAX_LENGTH - 13], key)


class MLFlowNames:
    """The names of one run. Where two keys would have the same one, the second gets a hash behind it."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def __getitem__(self, key: str) -> str:
        name = mlflow_name(key)
        if self._keys.setdefault(name, key) == key:
            return name
        return with_hash(name[: _MAX_LENGTH - 13], key)


def _spelled(found: re.Match[str]) -> str:
    return {"@": "_at_", "%": "_percent_"}.get(found[0], f"_x{ord(found[0]):x}_")


def _part(part: str) -> str:
    return "_" if not part else f"{part}_" if set(part) == {"."} else part
