"""Names of metrics, params and tags as MLflow takes them."""

from __future__ import annotations

import hashlib
import re

_MAX_LENGTH = 250


def mlflow_name(key: str) -> str:
    """The key if MLflow takes it, else one made from it, always the same.

    MLflow takes letters, digits and ``_ - . :``, space and ``/`` between parts that are not empty, ``.`` or ``..``, 250
    in all. ``@`` becomes ``_at_``, ``%`` ``_percent_``, and other characters their code in hexadecimal. An empty part
    becomes ``_``, and one of dots only gets ``_`` behind it. Of a name that is too long
    the end becomes a hash.

    >>> mlflow_name("validation/pass@4"), mlflow_name("a//b+c")
    ('validation/pass_at_4', 'a/_/b_x2b_c')
    """
    name = re.sub(r"[^\w.\- :/]", _spelled, key)
    name = "/".join(_part(part) for part in name.split("/"))
    if len(name) > _MAX_LENGTH:
        digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:12]
        name = f"{name[: _MAX_LENGTH - 13]}-{digest}"
    return name


def _spelled(found: re.Match[str]) -> str:
    return {"@": "_at_", "%": "_percent_"}.get(found[0], f"_x{ord(found[0]):x}_")


def _part(part: str) -> str:
    return "_" if not part else f"{part}_" if set(part) == {"."} else part
