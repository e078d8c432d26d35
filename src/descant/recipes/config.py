"""InputConfig: the base of a recipe's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_wrap_validator_function

from descant.arguments import what_was_meant
from descant.provenance import MASK
from descant.recipes.config_values import read_config
from descant.recipes.problems import describe_problems


class InputConfig(BaseModel):
    """Base of a recipe's config: a pydantic model that refuses keys that it does not have.

    Fields are pydantic's: ``lr: float = Field(1e-5, gt=0, description="the peak learning rate")``. A table of the
    config file is a field whose type is an ``InputConfig``, too. A field of type ``SecretStr`` is masked wherever the
    config is shown or recorded.

    >>> class Config(InputConfig):
    ...     lr: float = 1e-5
    >>> Config(lr="0.1").lr
    0.1

    Raises:
        pydantic.ValidationError: a value that its field does not allow, or a key that is not a field, with the closest
            one.
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
        """The config of plain values; messages call them ``source``.

        Raises:
            ConfigurationError: values that the fields do not allow, one line for each.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise describe_problems(error, values, source) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate, give unknown keys a message of their own, and hide secrets in errors."""

        def validate(data: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            try:
                return inner(data)
            except ValidationError as error:
                raise ValidationError.from_exception_data(
                    error.title, [cls._explained(problem) for problem in error.errors(include_url=False)]
                ) from None

        validate.__name__ = validate.__qualname__ = cls.__name__  # in errors, it names the member of a union
        return no_info_wrap_validator_function(validate, handler(source))

    @classmethod
    def _explained(cls, problem: Any) -> InitErrorDetails:
        loc, kind, given = problem["loc"], problem["type"], problem["input"]
        fields = {field.alias or name: field.annotation for name, field in cls.model_fields.items()}
        secrets = {key for key, annotation in fields.items() if SecretStr in (annotation, *get_args(annotation))}
        if loc and loc[0] in secrets:
            given = MASK
        elif not loc and isinstance(given, dict):
            given = {key: MASK if key in secrets else value for key, value in given.items()}
        if kind == "extra_forbidden" and len(loc) == 1:
            hint = what_was_meant(str(loc[0]), fields, "keys")
            error = PydanticCustomError("unknown_key", "there is no such key; {hint}", {"hint": hint})
        else:  # as it is; its context may be of a kind that pydantic does not take back
            error = PydanticCustomError(kind, problem["msg"])
        return InitErrorDetails(type=error, loc=loc, input=given)
