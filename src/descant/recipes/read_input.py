"""read_input: a recipe's config from its file and from what was set on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from descant.recipes.config import InputConfig
from descant.recipes.config_file import apply_setting, put_value, read_config
from descant.recipes.problems import key_of

_Config = TypeVar("_Config", bound=InputConfig)


def read_input(config_class: type[_Config], file: Path | None, settings: Sequence[str]) -> _Config:
    """The config: the defaults of the class, over them the file, over it ``key=value`` settings in their order.

    Raises:
        ConfigurationError: the file or a setting cannot be read, or the values are not allowed, all of them listed.
    """
    values = {} if file is None else read_config(file)
    written = dict(apply_setting(values, setting) for setting in settings)
    for parts, text in written.items():  # --set name=123 is text where the field is text
        as_text = deepcopy(values)
        put_value(as_text, parts, text)
        if _is_refused(config_class, values, parts) and not _is_refused(config_class, as_text, parts):
            values = as_text
    sources = [str(file)] * (file is not None) + ["--set"] * bool(settings)
    return config_class.from_values(values, " and ".join(sources) or "the config")


def _is_refused(config_class: type[InputConfig], values: dict[str, Any], parts: Sequence[str]) -> bool:
    """Whether something is wrong with what stands at a key."""
    try:
        config_class.model_validate(values)
    except ValidationError as error:
        keys = [key_of(problem["loc"], values) for problem in error.errors(include_url=False)]
        return any(key[: len(parts)] == list(parts) for key in keys)
    return False
