"""InputConfig: what a recipe can be told."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_wrap_validator_function

from descant.recipes.config_file import read_config
from descant.recipes.problems import describe_problems


class InputConfig(BaseModel):
    """Base of a recipe's config: a pydantic model that refuses keys that it does not have.

    Fields are pydantic's: ``lr: float = Field(1e-5, gt=0, description="the peak learning rate")``. A table of the
    config file is a field whose type is an ``InputConfig``, too.

    >>> class Config(InputConfig):
    ...     lr: float = 1e-5
    >>> Config(lr="0.1").lr
    0.1

    Raises:
        pydantic.ValidationError: a value that its field does not allow, or a key that is not a field, with what was
            probably meant.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    @classmethod
    def load_from_file(cls, path: str | Path) -> Self:
        """The config in a TOML, JSON or YAML file.

        Raises:
            ConfigurationError: the file cannot be read, with line and column; or values that the fields do not allow,
                all of them.
        """
        return cls.from_values(read_config(path), str(path))

    @classmethod
    def from_values(cls, values: dict[str, Any], source: str = "the config") -> Self:
        """The config of plain values; ``source`` is what messages call them.

        Raises:
            ConfigurationError: values that the fields do not allow, one line for each.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise describe_problems(error, values, source) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate, and give unknown keys a message of their own."""

        def validate(data: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            try:
                return inner(data)
            except ValidationError as error:
                raise ValidationError.from_exception_data(
                    error.title, [cls._explained(problem) for problem in error.errors(include_url=False)]
                ) from None

        validate.__name__ = validate.__qualname__ = cls.__name__  # it tells the members of a union apart in errors
        return no_info_wrap_validator_function(validate, handler(source))

    @classmethod
    def _explained(cls, problem: Any) -> InitErrorDetails:
        loc, kind = problem["loc"], problem["type"]
        if kind == "extra_forbidden" and len(loc) == 1:
            fields = [field.alias or name for name, field in cls.model_fields.items()]
            close = get_close_matches(str(loc[0]), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"keys are {', '.join(fields) or 'none'}"
            error = PydanticCustomError("unknown_key", "there is no such key; {hint}", {"hint": hint})
        else:  # as it is; its context may be of a kind that pydantic does not take back
            error = PydanticCustomError(kind, problem["msg"])
        return InitErrorDetails(type=error, loc=loc, input=problem["input"])
