"""The JSON schema grader, beyond what tests/contract/test_graders.py holds of every grader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from descant import StringThread
from descant.errors import ConfigurationError, GradingError
from descant.graders.json_schema import JSONSchemaGrader
from descant.graders.json_schema_validator import JSONSchemaValidator


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
        ("{}", 0.0, "$: 'name' is a required property"),
        ('{"name": 3}', 0.0, "$.name: 3 is not of type 'string'"),
        ('{"name": "A", "pets": [{"age": 1}, {"age": -1}]}', 0.0, "$.pets[1].age: -1 is less than the minimum of 0"),
        ('{"name": "A", "code": "ab"}', 0.0, "$.code: 'ab' does not match '^(a|aa)+$'"),
        ("[" * 100_000, 0.0, "not JSON that can be read: nested too deeply"),
    ],
)
async def test_json_schema(completion, value, reasoning):
    assert await result(JSONSchemaGrader(PERSON), completion) == (value, reasoning)


async def test_a_long_violation_is_shown_in_short_with_its_reason():
    value, reasoning = await result(JSONSchemaGrader(PERSON), f'{{"name": ["{"x" * 5000}"]}}')
    assert value == 0.0
    assert reasoning.endswith("is not of type 'string'")
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
async def test_no_pattern_of_a_schema_can_run_for_ever(monkeypatch, schema, text):
    monkeypatch.setattr("descant.graders.json_schema_validator.PATTERN_TIMEOUT_S", 0.05)
    with pytest.raises(GradingError, match="had no result on a text of 101 characters"):
        await result(JSONSchemaGrader(schema), text.format("a" * 100 + "c"))


async def test_a_schema_that_takes_exponential_time_ends(monkeypatch):
    monkeypatch.setattr("descant.graders.json_schema_validator.TIMEOUT_S", 0.05)
    node = {"items": {"$ref": "#"}}
    grader = JSONSchemaGrader({"oneOf": [node, node]})  # both are tried at every level
    with pytest.raises(
        GradingError, match=r"the JSON schema had no result after 0.05 s; alternatives \(anyOf, oneOf\)"
    ):
        await result(grader, "[" * 60 + "]" * 60)


PATTERNS = {
    "properties": {"name": {"type": "string"}},
    "patternProperties": {"^n": {"minLength": 2}, "_s$": {"type": "number"}},
}


@pytest.mark.parametrize(
    ("rest", "completion", "reasoning"),
    [
        (True, '{"name": "Ada", "wait_s": 1, "more": []}', "valid"),
        (True, '{"name": "A"}', "$.name: 'A' is too short"),
        (True, '{"wait_s": "long"}', "$.wait_s: 'long' is not of type 'number'"),
        (False, '{"name": "Ada", "wait_s": 1}', "valid"),
        (False, '{"name": "Ada", "more": 1}', "$: Additional properties are not allowed ('more' was unexpected)"),
        ({"type": "null"}, '{"nothing": "ab", "more": 1}', "$.more: 1 is not of type 'null'"),
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


@given(st.lists(JSON, max_size=5))
def test_unique_items_are_those_of_jsonschema(items):
    ours = JSONSchemaValidator({"uniqueItems": True}).first_violation(items) is None
    assert ours == Draft202012Validator({"uniqueItems": True}).is_valid(items)


def test_unique_items_take_linear_time():
    """With the square of them this would take an hour."""
    items = [{"id": number} for number in range(50_000)]
    assert JSONSchemaValidator({"uniqueItems": True}).first_violation(items) is None


LIST = {"items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("schema", "completion", "reasoning"),
    [
        (LIST, "[" * 400 + "]" * 400, "JSON that cannot be checked: nested too deeply"),
        ({"multipleOf": 0.1}, "1e999", "JSON that cannot be checked: a number is too large"),
        ({"multipleOf": 0.1}, "1" + "0" * 400, "JSON that cannot be checked: a number is too large"),
        ({"properties": {"a" * 5000: {"type": "null"}}}, f'{{"{"a" * 5000}": 1}}', "$.aaa"),
    ],
)
async def test_what_cannot_be_checked_is_graded_zero(schema, completion, reasoning):
    value, said = await result(JSONSchemaGrader(schema), completion)
    assert value == 0.0
    assert said.startswith(reasoning)
    assert len(said) < 450


async def test_the_draft_is_that_of_the_schema():
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "definitions": {"positive": {"minimum": 0, "exclusiveMinimum": True}},
        "items": {"$ref": "#/definitions/positive"},
    }
    assert (await result(JSONSchemaGrader(schema), "[1]"))[0] == 1.0
    assert (await result(JSONSchemaGrader(schema), "[0]"))[0] == 0.0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{}", "schema='{}' must be a dict"),
        ({"type": "objekt"}, r"not a JSON schema: at \$.type: 'objekt'"),
        ({"properties": {"a": {"minimum": "3"}}}, r"at \$.properties.a.minimum: '3' is not of type 'number'"),
        ({"pattern": "(a"}, r"at \$.pattern: '\(a' is not a 'regex'"),
        ({"$ref": "#/$defs/x"}, r"\$ref '#/\$defs/x' that leads nowhere"),
        ({"items": {"$ref": "https://example.org/x"}}, "that leads nowhere in it; .*nothing is fetched"),
        ({"items": {"$dynamicRef": "#x"}}, r"\$dynamicRef '#x' that leads nowhere"),
        ({"$ref": "#"}, r"leads in a circle \(.*\$ref '#'\)"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
            r"leads in a circle \(\$ref '#/\$defs/.', \$ref '#/\$defs/.'\)",
        ),
        ({"properties": {"x": {"anyOf": [{}, {"not": {"$ref": "#/properties/x"}}]}}}, r"circle \(.*anyOf.*\)"),
        ({"if": {"required": ["a"]}, "then": {"$ref": "#"}}, r"leads in a circle \(.*\$ref '#'\)"),
        ({"dependentSchemas": {"a": {"$ref": "#"}}}, r"leads in a circle \(.*\$ref '#'\)"),
        (
            {"$schema": "https://example.org/draft"},
            "unknown \\$schema 'https://example.org/draft'; a known one is 'https",
        ),
        ({"$schema": ["x"]}, r"unknown \$schema \['x'\]"),
        ({"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}, r"\$schema 'http:.*' inside"),
        ({"patternProperties": {"a": {}}, "items": {"unevaluatedProperties": False}}, "use additionalProperties"),
        ({"$ref": "#/x", "x": {"type": "objekt"}}, r"at #/x.type: 'objekt'"),
    ],
)
def test_a_schema_that_cannot_work_is_refused(schema, message):
    with pytest.raises(ConfigurationError, match=message):
        JSONSchemaGrader(schema)


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
    ],
)
async def test_a_schema_may_contain_itself_below(schema):
    assert (await JSONSchemaGrader(schema).grade(answer("[[null]]"))).value in (0.0, 1.0)
