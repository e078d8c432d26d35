"""JSONSchemaGrader: is the completion JSON that a schema allows?"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, NoReturn

import jsonschema_rs

from descant.errors import ConfigurationError, GradingError
from descant.graders.base import SHOWN_LENGTH
from descant.graders.completion_grader import CompletionGrader
from descant.text import cut, quoted
from descant.threads.thread import StringThread

MAX_LEVELS = 250  # the library reports no violations below 255, and has no stack left at a hundred thousand
MAX_PATTERN_STEPS = 100_000  # about two milliseconds
_MOST_VISITS = 1000
_FENCED = re.compile(r"(`{3,}+)[^\n`]*+\n(.*)\1", re.DOTALL)
_REFERENCE = re.compile(r"'\$(?:ref|dynamicRef|recursiveRef)':")


class JSONSchemaGrader(CompletionGrader):
    """Grade 1 if the completion is JSON and valid under the schema, else 0.

    The completion is JSON and nothing else, surrounding white space aside; all of it may stand in one ``` fence. NaN
    and Infinity are not JSON. JSON that cannot be checked (more than 250 levels, a number that a float cannot hold)
    is graded 0.

    The draft of the schema is that of its ``$schema``, or else 2020-12. ``format`` is an annotation and not checked, as
    the standard has it, and nothing is fetched: ``$ref`` leads to ``$defs`` of the same schema. Patterns are those of
    Rust's ``regex`` crate, which takes linear time, and of ``fancy-regex`` where they look around or refer back.

    Args:
        schema: a JSON schema, as a dict.
        grader_key: the grader's name.

    Raises:
        ConfigurationError: not a JSON schema, or one that cannot work: an unknown draft, a reference that leads
            nowhere, a pattern that is not a regular expression.
        GradingError (when grading): a pattern that looks around or refers back had no result after 100,000 steps, or
            the thread does not end in an assistant turn.
    """

    def __init__(self, schema: dict[str, Any], grader_key: str = "json_schema") -> None:
        super().__init__(grader_key)
        if not isinstance(schema, dict):
            raise ConfigurationError(f"schema={quoted(schema)} must be a dict, such as {{'type': 'object'}}")
        self.schema = schema
        try:
            self._validator = jsonschema_rs.validator_for(
                schema,
                offline=True,
                validate_formats=False,
                pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_PATTERN_STEPS),
            )
            unfolded = repr(jsonschema_rs.dereference(schema, offline=True))
        except jsonschema_rs.ValidationError as error:
            if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Referencing):
                raise ConfigurationError(
                    f"schema refers to what is not in it: {error.message}. Nothing is fetched: what a $ref means goes "
                    "under $defs ('#/$defs/name'), and $schema is a draft such as "
                    "'https://json-schema.org/draft/2020-12/schema', which is also the default"
                ) from None
            raise ConfigurationError(f"schema is not a JSON schema: at {_place(error)}: {error.message}") from None
        except ValueError as error:  # something that JSON does not have
            raise ConfigurationError(f"schema is not a JSON schema: {error}") from None
        self._num_circles = len(_REFERENCE.findall(unfolded))

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether the schema allows it; the reasoning is the first violation with its path."""
        fenced = _FENCED.fullmatch(completion.strip())
        text, reason = fenced[2] if fenced else completion.strip(), None
        try:
            instance = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
            num_levels = _num_levels(instance)
            if num_levels > MAX_LEVELS:
                raise OverflowError("nested too deeply")
            if not self._validator.is_valid(instance):
                reason = self._first_violation(instance, num_levels)
        except RecursionError:
            reason = "not JSON that can be read: nested too deeply"
        except (OverflowError, UnicodeEncodeError) as error:
            reason = f"JSON that cannot be checked: {error}"
        except ValueError as error:
            reason = f"not JSON: {error}"
        return reason is None, reason or "valid"

    def _first_violation(self, instance: Any, num_levels: int) -> str:
        # is_valid looks at each value once for each subschema. The search for a violation does not: where a schema
        # contains itself in two places, its time and memory double with every level of the JSON.
        if self._num_circles**num_levels > _MOST_VISITS:
            return "$: not valid; where is not known, since the schema contains itself in several places"
        error = next(self._validator.iter_errors(instance))
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.BacktrackLimitExceeded):
            raise GradingError(
                f"grader {self.grader_key!r}: a pattern of the schema had no result after {MAX_PATTERN_STEPS:,} steps "
                f"at {cut(_place(error))}"
            )
        message = error.message
        if len(message) > SHOWN_LENGTH:
            message = f"{message[: SHOWN_LENGTH // 2]} ... {message[-SHOWN_LENGTH // 2 :]}"  # the reason is at its end
        return f"{cut(_place(error))}: {message}"


def _place(error: jsonschema_rs.ValidationError) -> str:
    """Where a violation is, as a JSON path."""
    steps = (f".{step}" if str(step).isidentifier() else f"[{step!r}]" for step in error.instance_path)
    return "$" + "".join(steps)


def _num_levels(value: Any) -> int:
    level, num_levels = [value], 0
    while level:
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level, num_levels = [value for values in inner for value in values], num_levels + 1
    return num_levels


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise OverflowError(f"{cut(text, 40)} is too large a number")
    return number
