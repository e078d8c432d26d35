"""JSONSchemaValidator: a JSON schema whose check ends, whatever it is applied to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from descant.errors import ConfigurationError, GradingError
from descant.graders.bounded_pattern import BoundedPattern

PATTERN_TIMEOUT_S = 1.0
TIMEOUT_S = 10.0

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_IN_PLACE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_DICTS = ("dependentSchemas", "dependencies")
_deadline: ContextVar[float] = ContextVar("descant_json_schema_deadline")

Keyword = Callable[[Any, Any, Any, dict[str, Any]], "Iterable[ValidationError] | None"]
Step = tuple[str, Any]


class JSONSchemaValidator:
    """The validator of ``jsonschema`` with limits of time, since a model may find the instance that needs for ever.

    Its patterns are searched with ``BoundedPattern``, other threads running meanwhile; ``uniqueItems`` takes time in
    proportion to the items and not to their square; and the whole ends after ``TIMEOUT_S``.

    Args:
        schema: a JSON schema, as a dict.

    Raises:
        ConfigurationError: not a JSON schema, or one that cannot work.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        if not isinstance(schema, dict):
            raise ConfigurationError(f"schema={schema!r} must be a dict, such as {{'type': 'object'}}")
        draft = _draft_of(schema)
        _check_schema(draft, schema, "$")
        _check_subschemas(draft, schema)
        own: dict[str, Keyword] = {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties(draft.VALIDATORS["additionalProperties"]),
            "uniqueItems": _unique_items,
        }
        keywords = {name: _timed(keyword) for name, keyword in {**draft.VALIDATORS, **own}.items()}
        # where jsonschema comes upon a $schema, by "$ref": "#" say, it goes on with the keywords of its own
        schema = {name: value for name, value in schema.items() if name != "$schema"}
        self._validator = extend(draft, keywords)(schema, registry=Registry())

    def first_violation(self, instance: Any) -> ValidationError | None:
        """The first violation, or None.

        Raises:
            GradingError: no result in time.
            RecursionError: the instance is nested too deeply.
            ArithmeticError: a number in it is too large.
        """
        token = _deadline.set(time.monotonic() + TIMEOUT_S)
        try:
            return next(self._validator.iter_errors(instance), None)
        finally:
            _deadline.reset(token)


def _draft_of(schema: dict[str, Any]) -> Any:
    name = schema.get("$schema")
    if name is None:
        return Draft202012Validator
    draft = validator_for(schema, default=None) if isinstance(name, str) else None
    if draft is None:
        raise ConfigurationError(
            f"schema has the unknown $schema {name!r}; a known one is {Draft202012Validator.META_SCHEMA['$id']!r}, "
            "which is also what a schema without $schema is read as"
        )
    return draft


def _check_schema(draft: Any, schema: Any, place: str) -> None:
    try:
        draft.check_schema(schema)
    except SchemaError as error:
        where = place + error.json_path.removeprefix("$")
        raise ConfigurationError(f"schema is not a JSON schema: at {where}: {error.message}") from None


def _timed(keyword: Keyword) -> Keyword:
    def timed(validator: Any, value: Any, instance: Any, schema: dict[str, Any]) -> Iterable[ValidationError] | None:
        if time.monotonic() > _deadline.get():
            raise GradingError(
                f"the JSON schema had no result after {TIMEOUT_S:g} s; alternatives (anyOf, oneOf) that contain each "
                "other can take exponential time on what is nested"
            )
        return keyword(validator, value, instance, schema)

    return timed


def _matches(pattern: str, text: str) -> bool:
    return BoundedPattern(pattern, PATTERN_TIMEOUT_S).search(text) is not None


def _pattern(validator: Any, pattern: str, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, subschemas: dict[str, Any], instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in subschemas.items():
            for name, value in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(original: Keyword) -> Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: dict[str, Any]) -> Iterable[ValidationError] | None:
        if not isinstance(instance, dict) or "patternProperties" not in schema:
            return original(validator, value, instance, schema)
        patterns = schema["patternProperties"]
        matched = {name: True for name in instance if any(_matches(pattern, name) for pattern in patterns)}
        return original(validator, value, instance, {"properties": {**schema.get("properties", {}), **matched}})

    return check


def _unique_items(validator: Any, wanted: bool, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if wanted and isinstance(instance, list) and len(set(map(_hashable, instance))) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def _hashable(value: Any) -> Any:
    """Equal for values that are equal in JSON, where 1 is 1.0 and not true."""
    if isinstance(value, dict):
        return frozenset((name, _hashable(each)) for name, each in value.items())
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return (bool, value) if isinstance(value, bool) else value


def _check_subschemas(draft: Any, schema: dict[str, Any]) -> None:
    """Refuse what would fail on every completion, or on some in the middle of a run."""
    specification = specification_with(draft.ID_OF(draft.META_SCHEMA))
    root = specification.create_resource(schema)
    waiting = [(root, Registry().resolver_with_root(root))]
    steps_from: dict[int, list[Step]] = {}  # by subschema: which others apply to the same value, by which keyword
    seen: set[str] = set()
    while waiting:
        resource, resolver = waiting.pop()
        contents = resource.contents
        if not isinstance(contents, dict) or id(contents) in steps_from:
            continue
        if "$schema" in contents and contents is not schema:
            raise ConfigurationError(f"schema has a $schema {contents['$schema']!r} inside; it goes to the top")
        for pattern in [*filter(None, [contents.get("pattern")]), *contents.get("patternProperties", ())]:
            BoundedPattern(pattern, PATTERN_TIMEOUT_S)
        seen.update(contents)
        steps_from[id(contents)] = _applied_in_place(contents)
        for keyword in _REFERENCES:
            if isinstance(reference := contents.get(keyword), str):
                found = _resolved(resolver, keyword, reference)
                if id(found.contents) not in steps_from:  # it may stand where check_schema expects none
                    _check_schema(draft, found.contents, reference)
                steps_from[id(contents)].append((f"{keyword} {reference!r}", found.contents))
                waiting.append((specification.create_resource(found.contents), found.resolver))
        inner = map(specification.create_resource, specification.subresources_of(contents))
        waiting += [(each, resolver.in_subresource(each)) for each in inner]
    if {"patternProperties", "unevaluatedProperties"} <= seen:
        raise ConfigurationError(
            "schema has unevaluatedProperties and patternProperties, whose patterns could then run for ever; use "
            "additionalProperties"
        )
    _check_circles(steps_from)


def _resolved(resolver: Any, keyword: str, reference: str) -> Any:
    try:
        return resolver.lookup(reference)
    except Unresolvable:
        raise ConfigurationError(
            f"schema has a {keyword} {reference!r} that leads nowhere in it; put what it means under $defs and "
            "write '#/$defs/name' (nothing is fetched)"
        ) from None


def _applied_in_place(schema: dict[str, Any]) -> list[Step]:
    return [
        *((keyword, schema[keyword]) for keyword in _IN_PLACE if keyword in schema),
        *((keyword, each) for keyword in _IN_PLACE_LISTS for each in schema.get(keyword, [])),
        *((keyword, each) for keyword in _IN_PLACE_DICTS for each in schema.get(keyword, {}).values()),
    ]


def _check_circles(steps_from: dict[int, list[Step]]) -> None:
    ended: set[int] = set()
    for start, steps in steps_from.items():
        path = [("", start, iter(steps))]
        while path:
            _, here, others = path[-1]
            name, other = next(others, ("", None))
            if not name:
                ended.add(here)
                path.pop()
                continue
            passed = [where for _, where, _ in path]
            if id(other) in passed:
                names = [*(each for each, _, _ in path[passed.index(id(other)) + 1 :]), name]
                raise ConfigurationError(
                    f"schema leads in a circle ({', '.join(names)}): it applies to a value what applies to it already. "
                    "It may contain itself under properties or items"
                )
            if id(other) in steps_from and id(other) not in ended:
                path.append((name, id(other), iter(steps_from[id(other)])))
