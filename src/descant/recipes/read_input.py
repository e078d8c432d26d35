"""read_input: a recipe's config from its file and from what was set on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from descant.recipes.config import InputConfig
from descant.recipes.config_file import apply_setting, put_value, read_config

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
        if _num_problems(config_class, as_text) < _num_problems(config_class, values):
            values = as_text
    sources = [str(file)] * (file is not None) + ["--set"] * bool(settings)
    return config_class.from_values(values, " and ".join(sources) or "the config")


def _num_problems(config_class: type[InputConfig], values: dict[str, Any]) -> int:
    try:
        config_class.model_validate(values)
    except ValidationError as error:
        return error.error_count()
    return 0
