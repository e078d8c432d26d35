"""The JSON schema grader, beyond what tests/contract/test_graders.py holds of every grader."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread
from descant.errors import ConfigurationError, GradingError
from descant.graders.json_schema import JSONSchemaGrader


def answer(content):
    return StringThread([("user", "q"), ("assistant", content)])


async def result(grader, content):
    grade = await grader.grade(answer(content))
    return grade.value, grade.reasoning


PERSON = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}},
        "code": {"pattern": "^(a|aa)+$"},
    },
    "$defs": {"pet": {"type": "object", "properties": {"age": {"minimum": 0}}}},
}


@pytest.mark.parametrize(
    ("completion", "value", "reasoning"),
    [
        ('{"name": "Ada"}', 1.0, "valid"),
        ('\n```json\n{"name": "Ada"}\n```\n', 1.0, "valid"),
        ('```\n{"name": "`"}```', 1.0, "valid"),
        ('Here: {"name": "Ada"}', 0.0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('```json\n{"name": "Ada"}\n```\nDone.', 0.0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("NaN", 0.0, "not JSON: NaN is not a JSON number"),
        ("{}", 0.0, '$: "name" is a required property'),
        ('{"name": 3}', 0.0, '$.name: 3 is not of type "string"'),
        ('{"name": "A", "pets": [{"age": 1}, {"age": -1}]}', 0.0, "$.pets[1].age: -1 is less than the minimum of 0"),
        ('{"name": "A", "code": "ab"}', 0.0, '$.code: "ab" does not match "^(a|aa)+$"'),
        ("[" * 100_000, 0.0, "not JSON that can be read: nested too deeply"),
    ],
)
async def test_json_schema(completion, value, reasoning):
    assert await result(JSONSchemaGrader(PERSON), completion) == (value, reasoning)


async def test_a_long_violation_is_shown_in_short_with_its_reason():
    value, reasoning = await result(JSONSchemaGrader(PERSON), f'{{"name": ["{"x" * 5000}"]}}')
    assert value == 0.0
    assert reasoning.endswith('is not of type "string"')
    assert len(reasoning) < 300


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "^(a|aa)+$"}, '"{}"'),
        ({"patternProperties": {"^(a|aa)+$": {}}}, '{{"{}": 1}}'),
        ({"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False}, '{{"{}": 1}}'),
        ({"additionalProperties": False, "patternProperties": {"^(a|aa)+$": {}}}, '{{"{}": 1}}'),
        ({"items": {"patternProperties": {"^(a|aa)+$": {}}}}, '[{{"{}": 1}}]'),
        ({"propertyNames": {"pattern": "^(a|aa)+$"}}, '{{"{}": 1}}'),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a|aa)+$", "items": {"$ref": "#"}},
            '["{}"]',
        ),
    ],
)
async def test_no_pattern_of_a_schema_can_run_for_ever(schema, text):
    assert await result(JSONSchemaGrader(schema), text.format("a" * 100)) == (1.0, "valid")
    assert (await JSONSchemaGrader(schema).grade(answer(text.format("a" * 100 + "c")))).value in (0.0, 1.0)


async def test_a_pattern_that_backtracks_too_long_is_a_failure():
    grader = JSONSchemaGrader({"properties": {"code": {"pattern": r"^(a|aa)+\1$"}}})
    assert await result(grader, '{"code": "aaaa"}') == (1.0, "valid")
    message = r"'json_schema': a pattern of the schema had no result after 100,000 steps at \$\.code$"
    with pytest.raises(GradingError, match=message):
        await result(grader, f'{{"code": "{"a" * 100}c"}}')


NODE = {"items": {"$ref": "#"}}
OBJECT = {"properties": {"a": {"$ref": "#"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [NODE, NODE]},
        {"anyOf": [NODE, NODE], "not": {"type": "integer"}},
        {"allOf": [NODE, NODE], "not": {"type": "integer"}},
        {"if": NODE, "then": NODE, "else": NODE, "not": {"type": "integer"}},
        {"oneOf": [{"type": "integer"}, OBJECT, {**OBJECT, "required": ["b"]}]},
        {**OBJECT, "patternProperties": {"^a": {"$ref": "#"}}, "type": "object"},
        {"anyOf": [OBJECT, OBJECT], "unevaluatedProperties": False, "type": "object"},
        {"$dynamicAnchor": "n", "anyOf": [{"items": {"$dynamicRef": "#n"}}] * 2, "not": {"type": "integer"}},
    ],
)
async def test_a_schema_that_contains_itself_twice_takes_no_exponential_time(schema):
    """Both are tried at every level, so that 60 levels would take until the end of the world."""
    grader = JSONSchemaGrader(schema)
    for completion in ("[" * 60 + "1" + "]" * 60, '{"a":' * 60 + "1" + "}" * 60):
        value, reasoning = await result(grader, completion)
        assert (value, reasoning == "valid") in ((0.0, False), (1.0, True))


async def test_where_a_schema_contains_itself_twice_the_place_is_given_as_far_as_that_is_cheap():
    grader = JSONSchemaGrader({"type": "array", "allOf": [NODE, NODE]})
    assert await result(grader, "[[1]]") == (0.0, '$[0][0]: 1 is not of type "array"')
    value, reasoning = await result(grader, "[" * 60 + "1" + "]" * 60)
    assert (value, reasoning[:13]) == (0.0, "$: not valid;")


PATTERNS = {
    "properties": {"name": {"type": "string"}},
    "patternProperties": {"^n": {"minLength": 2}, "_s$": {"type": "number"}},
}


@pytest.mark.parametrize(
    ("rest", "completion", "reasoning"),
    [
        (True, '{"name": "Ada", "wait_s": 1, "more": []}', "valid"),
        (True, '{"name": "A"}', '$.name: "A" is shorter than 2 characters'),
        (True, '{"wait_s": "long"}', '$.wait_s: "long" is not of type "number"'),
        (False, '{"name": "Ada", "wait_s": 1}', "valid"),
        (False, '{"name": "Ada", "more": 1}', "$: Additional properties are not allowed ('more' was unexpected)"),
        ({"type": "null"}, '{"nothing": "ab", "more": 1}', '$.more: 1 is not of type "null"'),
        (False, "3", "valid"),
    ],
)
async def test_properties_by_pattern(rest, completion, reasoning):
    grader = JSONSchemaGrader({**PATTERNS, "additionalProperties": rest})
    assert await result(grader, completion) == (float(reasoning == "valid"), reasoning)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 0.5]) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


def canonical(value):
    """Equal for values that are equal in JSON, where 1 is 1.0 and not true."""
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(each)) for name, each in value.items()))
    if isinstance(value, list):
        return ("list", *map(canonical, value))
    return (isinstance(value, bool), value)


@given(st.lists(JSON, max_size=5))
async def test_unique_items_are_those_that_differ_in_json(items):
    unique = not any(one == other for one, other in itertools.combinations(map(canonical, items), 2))
    assert (await result(JSONSchemaGrader({"uniqueItems": True}), json.dumps(items)))[0] == unique


@pytest.mark.parametrize("number", [20_000, 50_000])
async def test_unique_items_take_linear_time(number):
    """With the square of them this would take an hour."""
    items = json.dumps([{"id": number} for number in range(number)])
    assert await result(JSONSchemaGrader({"uniqueItems": True}), items) == (1.0, "valid")


LIST = {"items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("schema", "completion", "reasoning"),
    [
        (LIST, "[" * 400 + "]" * 400, "JSON that cannot be checked: nested too deeply"),
        (LIST, "[" * 3000 + "]" * 3000, "not JSON that can be read: nested too deeply"),
        ({"multipleOf": 0.1}, "1e999", "JSON that cannot be checked: 1e999 is too large a number"),
        ({"type": "null"}, "-1.0e999", "JSON that cannot be checked: -1.0e999 is too large a number"),
        (LIST, '"\\ud83d"', "JSON that cannot be checked: 'utf-8' codec can't encode character '\\ud83d'"),
        ({"properties": {"a" * 5000: {"type": "null"}}}, f'{{"{"a" * 5000}": 1}}', "$.aaa"),
    ],
)
async def test_what_cannot_be_checked_is_graded_zero(schema, completion, reasoning):
    value, said = await result(JSONSchemaGrader(schema), completion)
    assert value == 0.0
    assert said.startswith(reasoning)
    assert len(said) < 450


@pytest.mark.parametrize(
    ("schema", "instance", "value"),
    [
        ({"multipleOf": 0.1}, 10**400, 1.0),
        ({"multipleOf": 7}, 10**400, 0.0),
        ({"maximum": 10**400}, 10**400 + 1, 0.0),
        ({"const": 10**400}, 10**400, 1.0),
    ],
)
async def test_integers_of_400_digits_are_exact(schema, instance, value):
    assert (await result(JSONSchemaGrader(schema), str(instance)))[0] == value


@pytest.mark.parametrize("schema", [LIST, {"items": {"not": {"type": "integer"}}}])
@pytest.mark.parametrize("num_levels", [250, 251, 3000])
async def test_json_of_250_levels_is_checked(monkeypatch, schema, num_levels):
    """Also where Python's recursion limit does not stop the reading of JSON, as in newer versions."""
    instance = []
    for _ in range(num_levels - 1):
        instance = [instance]
    monkeypatch.setattr("json.loads", lambda *_, **__: instance)
    value, reasoning = await result(JSONSchemaGrader(schema), "[]")
    assert ("cannot be checked: nested too deeply" in reasoning) == (num_levels > 250)
    assert value == (num_levels == 250)


async def test_the_draft_is_that_of_the_schema():
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "definitions": {"positive": {"minimum": 0, "exclusiveMinimum": True}},
        "items": {"$ref": "#/definitions/positive"},
    }
    assert (await result(JSONSchemaGrader(schema), "[1]"))[0] == 1.0
    assert (await result(JSONSchemaGrader(schema), "[0]"))[0] == 0.0


@pytest.mark.parametrize("draft", ["draft-07/schema#", "draft-04/schema#"])
async def test_formats_are_annotations_in_every_draft(draft):
    schema = {"$schema": f"http://json-schema.org/{draft}", "format": "date"}
    assert await result(JSONSchemaGrader(schema), '"tomorrow"') == (1.0, "valid")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{}", "schema='{}' must be a dict"),
        ({"type": "objekt"}, r'not a JSON schema: at \$.type: "objekt"'),
        ({"properties": {"a": {"minimum": "3"}}}, r'at \$.properties.a.minimum: "3" is not of type "number"'),
        ({"pattern": "(a"}, r'at \$.pattern: "\(a" is not a "regex"'),
        ({"patternProperties": {"(a": {}}}, r"at \$.patternProperties\['\(a'\]: .* is not a \"regex\""),
        ({"$ref": "#/$defs/x"}, r"not in it: Pointer '/\$defs/x' does not exist.*'#/\$defs/name'"),
        ({"items": {"$ref": "https://example.org/x"}}, "not in it: .*'https://example.org/x'.* Nothing is fetched"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "not in it: .*'file:///etc/passwd'.* Nothing is fetched"),
        ({"items": {"$dynamicRef": "#x"}}, "not in it: Anchor 'x' does not exist"),
        ({"$schema": "https://example.org/draft"}, "Unknown meta-schema: 'https://example.org/draft'.*2020-12"),
        ({"$schema": ["x"]}, r'at \$\[\'\$schema\'\]: \["x"\] is not of type "string"'),
        ({"$ref": "#/x", "x": {"type": "objekt"}}, r"at \$.x.type: Unexpected type"),
        ({"const": {1, 2}}, "not a JSON schema: .*'set'"),
    ],
)
def test_a_schema_that_cannot_work_is_refused(schema, message):
    with pytest.raises(ConfigurationError, match=message):
        JSONSchemaGrader(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"properties": {"x": {"anyOf": [{}, {"not": {"$ref": "#/properties/x"}}]}}},
        {"if": {"required": ["a"]}, "then": {"$ref": "#"}},
        {"dependentSchemas": {"a": {"$ref": "#"}}},
    ],
)
async def test_a_schema_that_leads_in_a_circle_ends(schema):
    for completion in ('{"a": {"a": 1}}', '{"x": 1}', "[[[]]]", "1"):
        assert (await JSONSchemaGrader(schema).grade(answer(completion))).value in (0.0, 1.0)


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"$ref": "#"}},
        {"not": {"items": {"$ref": "#"}}},
        {"dependentSchemas": {"a": {"properties": {"a": {"$ref": "#"}}}}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "null"}}},
        {"$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}},
        {"$schema": "http://json-schema.org/draft-07/schema", "definitions": {"a": {}}, "$ref": "#/definitions/a"},
        {"unevaluatedProperties": False, "properties": {"patternProperties": {}}},
        {"const": {"$ref": "#"}, "properties": {"$ref": True}},
        {"patternProperties": {"a": {}}, "items": {"unevaluatedProperties": False}},
        {"items": {"$schema": "http://json-schema.org/draft-07/schema#"}},
    ],
)
async def test_a_schema_may_contain_itself_below(schema):
    assert (await JSONSchemaGrader(schema).grade(answer("[[null]]"))).value in (0.0, 1.0)
