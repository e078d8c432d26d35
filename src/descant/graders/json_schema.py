"""JSONSchemaGrader: is the completion JSON that a schema allows?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, SchemaError, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped]
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from descant.errors import ConfigurationError
from descant.graders.bounded_pattern import BoundedPattern
from descant.graders.completion_grader import SHOWN_LENGTH, CompletionGrader
from descant.graders.daemon_pool import GRADER_THREADS
from descant.threads.thread import StringThread

_FENCED = re.compile(r"(`{3,}+)[^\n`]*+\n(.*)\1", re.DOTALL)
PATTERN_TIMEOUT_S = 1.0


class JSONSchemaGrader(CompletionGrader):
    """Grade 1 if the completion is JSON and valid under the schema, else 0.

    The completion is JSON and nothing else, surrounding white space aside; all of it may stand in one ``` fence. NaN
    and Infinity are not JSON. The draft of the schema is that of its ``$schema``, or else 2020-12. ``format`` is a
    remark and not checked, as the standard has it, and nothing is fetched: ``$ref`` leads to ``$defs`` of the same
    schema.

    Args:
        schema: a JSON schema, as a dict.
        grader_key: the grader's name.

    Raises:
        ConfigurationError: not a JSON schema, or a ``$ref`` that leads nowhere.
        GradingError (when grading): a pattern of the schema took too long, or the thread does not end in an assistant
            turn.
    """

    def __init__(self, schema: dict[str, Any], grader_key: str = "json_schema") -> None:
        super().__init__(grader_key)
        if not isinstance(schema, dict):
            raise ConfigurationError(f"schema={schema!r} must be a dict, such as {{'type': 'object'}}")
        draft = validator_for(schema, default=Draft202012Validator)
        try:
            draft.check_schema(schema)
        except SchemaError as error:
            raise ConfigurationError(f"schema is not a JSON schema: at {error.json_path}: {error.message}") from None
        _check_references(schema)
        self.schema = schema
        self._validator = extend(draft, {"pattern": _bounded_pattern})(schema, registry=Registry())

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether the schema allows it; the reasoning is the first violation with its path."""
        reason = await GRADER_THREADS.run(self._violation, completion)
        return reason is None, reason or "valid"

    def _violation(self, completion: str) -> str | None:
        try:
            instance = json.loads(_without_fence(completion.strip()), parse_constant=_refuse_constant)
        except RecursionError:
            return "not JSON that can be read: nested too deeply"
        except ValueError as error:
            return f"not JSON: {error}"
        violation = next(self._validator.iter_errors(instance), None)
        if violation is None:
            return None
        message = violation.message
        if len(message) > SHOWN_LENGTH:
            message = f"{message[: SHOWN_LENGTH // 2]} ... {message[-SHOWN_LENGTH // 2 :]}"  # the reason is at its end
        return f"{violation.json_path}: {message}"


def _without_fence(text: str) -> str:
    fenced = _FENCED.fullmatch(text)
    return fenced[2] if fenced else text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _bounded_pattern(validator: Any, pattern: str, instance: object, schema: object) -> Iterator[Any]:
    if isinstance(instance, str) and BoundedPattern(pattern, PATTERN_TIMEOUT_S).search(instance) is None:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_references(schema: dict[str, Any]) -> None:
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    waiting = [(resource, Registry().resolver_with_root(resource))]
    while waiting:
        resource, resolver = waiting.pop()
        reference = resource.contents.get("$ref") if isinstance(resource.contents, dict) else None
        if isinstance(reference, str):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ConfigurationError(
                    f"schema has a $ref {reference!r} that leads nowhere in it; put what it means under $defs and "
                    "write '#/$defs/name' (nothing is fetched)"
                ) from None
        waiting += [(each, resolver.in_subresource(each)) for each in resource.subresources()]
