"""Exact match, regex, contains and numeric, beyond what tests/contract/test_graders.py holds of every grader."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import CombinedGrader, ExactMatchGrader, StringThread
from descant.errors import ConfigurationError, GradingError
from descant.graders.contains import ContainsGrader
from descant.graders.numeric import NumericGrader, last_number
from descant.graders.regex_grader import RegexGrader


def answer(content, reference=None):
    return StringThread([("user", "q"), ("assistant", content)], {"reference": reference})


async def result(grader, content, reference=None):
    grade = await grader.grade(answer(content, reference))
    return grade.value, grade.reasoning


# References

NO_REFERENCE = {
    "missing": None, "empty": "", "white space": " \n", "a number": 4, "a list": ["four"], "a mapping": {"text": "four"}
}  # fmt: skip
WITH_REFERENCE = {"exact": ExactMatchGrader, "contains": ContainsGrader, "numeric": NumericGrader}


@pytest.mark.parametrize("kind", WITH_REFERENCE)
@pytest.mark.parametrize("case", NO_REFERENCE)
async def test_without_a_reference_that_can_be_compared_with_there_is_no_grade(kind, case):
    grader, reference = WITH_REFERENCE[kind](), NO_REFERENCE[case]
    if kind == "numeric" and case == "a number":
        assert (await result(grader, "4", reference))[0] == 1.0
        return
    for completion in ("", "four", "None", "4"):
        with pytest.raises(GradingError, match=f"grader '{grader.grader_key}' needs .* in metadata"):
            await grader.grade(answer(completion, reference))
    assert "in metadata['reference'], found" in grader.unusable(answer("x", reference))
    assert grader.get_logs() == {}


def test_what_needs_no_reference_is_usable_without_one():
    for grader in (ContainsGrader("four"), RegexGrader("four"), CombinedGrader("all", [RegexGrader("a")])):
        assert grader.unusable(answer("x")) is None
    assert "grader 'exact_match' needs" in CombinedGrader("all", [RegexGrader("a"), ExactMatchGrader()]).unusable(
        answer("x")
    )
    assert ExactMatchGrader().unusable(answer("x", "four")) is None


async def test_equivalent_unicode_is_equal():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for reference, completion in ((composed, decomposed), (decomposed, composed)):
        assert (await result(ExactMatchGrader(), completion, reference))[0] == 1.0
        assert (await result(ContainsGrader(), f"a {completion}!", reference))[0] == 1.0
        assert (await result(ContainsGrader(ignore_case=True), f"A {completion.upper()}!", reference))[0] == 1.0
    assert (await result(ExactMatchGrader(), "x\u00b2", "x2"))[0] == 0.0  # compatible is not equivalent
    assert (await result(NumericGrader(), "\u0664\u0662", 42))[0] == 1.0
    assert (await result(NumericGrader(), "\u22122", -2))[0] == 1.0


async def test_reasoning_counts_as_what_the_model_wrote():
    thinking = "<think>\n4 or 5\n</think>\n\nfour"
    assert (await result(ExactMatchGrader(), thinking, "four"))[0] == 0.0
    assert (await result(ExactMatchGrader(), thinking, thinking))[0] == 1.0
    assert (await result(ContainsGrader(), thinking, "5"))[0] == 1.0
    assert (await result(RegexGrader(r"(?s)(?:.*</think>)?\s*four", full_match=True), thinking))[0] == 1.0


# Regex


async def test_regex_searches_or_matches_the_whole():
    assert await result(RegexGrader(r"\d+"), "It is 42.") == (1.0, r"'\d+' matches '42'")
    assert await result(RegexGrader(r"\d+", full_match=True), "It is 42.") == (
        0.0, r"'\d+' does not match the whole completion",
    )  # fmt: skip
    assert await result(RegexGrader(r"\d+", full_match=True), " 42\n") == (1.0, r"'\d+' matches '42'")
    assert (await result(RegexGrader("(?i)yes"), "YES"))[0] == 1.0
    assert await result(RegexGrader("x*"), "y") == (1.0, "'x*' matches ''")


async def test_regex_shows_a_long_match_in_short():
    value, reasoning = await result(RegexGrader("a+"), "a" * 5000)
    assert value == 1.0
    assert len(reasoning) < 300


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("ab(c", r"pattern='ab\(c' is not a regular expression: missing \) at position 4, where it ends"),
        ("ab)c", r"unbalanced parenthesis at position 2, between 'ab' and '\)c'"),
        (3, "pattern=3 must be a string"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_position(pattern, message):
    with pytest.raises(ConfigurationError, match=message):
        RegexGrader(pattern)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), None, "1", True])
def test_a_timeout_of_a_pattern_is_a_positive_number(timeout_s):
    with pytest.raises(ConfigurationError, match="timeout_s="):
        RegexGrader("a", timeout_s=timeout_s)


def test_the_limit_of_a_pattern_is_time_and_not_processor_time():
    pattern, limits = RegexGrader("a", timeout_s=60), []

    def find(text, timeout, concurrent):
        """regex while other threads compute: its clock, the processor time of the process, runs ahead."""
        assert concurrent  # else it would stop all of Python
        limits.append(timeout)
        if len(limits) < 3:
            raise TimeoutError
        return "found"

    pattern._find = find
    assert pattern.search("text") == "found"
    assert limits == [60, 120, 240]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.99], [1]),  # one thread computes
        ([0.51], [1]),  # what is left is less than what was not enough
        ([0.4, 0.6], [1, 1.5]),  # what is left, at the same speed
        ([0.125, 0.25, 0.5], [1, 2, 4]),  # eight threads compute
    ],
)
def test_a_pattern_does_not_begin_anew_where_that_would_take_longer_than_is_left(monkeypatch, seconds, expected):
    now, limits, lasting = 0.0, [], iter(seconds)
    monkeypatch.setattr("descant.graders.regex_grader.time.monotonic", lambda: now)

    def find(text, timeout, concurrent):
        nonlocal now
        now += next(lasting)
        limits.append(timeout)
        raise TimeoutError

    pattern = RegexGrader("a", timeout_s=1)
    pattern._find = find
    with pytest.raises(GradingError, match="no result on a text of 4 characters after 1 s"):
        pattern.search("text")
    assert limits == pytest.approx(expected)
    assert now <= 1


# Long completions


@pytest.mark.parametrize(
    ("grader", "completion", "reference"),
    [
        (ExactMatchGrader(), "x" * 10**6, "y" * 10**6),
        (NumericGrader(), "9" * 10**5, "8" * 10**5),
        (NumericGrader(), "x" * 10**6, "8" * 10**5),
        (RegexGrader("x+"), "x" * 10**6, None),
        (ContainsGrader(), "x", "y" * 10**6),
    ],
)
async def test_reasoning_stays_short(grader, completion, reference):
    assert len((await result(grader, completion, reference))[1]) < 600


# Contains


async def test_contains_needs_all_texts():
    grader = ContainsGrader(["red", "green"])
    assert await result(grader, "green and red") == (1.0, "contains 'red', 'green'")
    assert await result(grader, "Green and red") == (0.0, "does not contain 'green'")
    assert (await result(ContainsGrader("STRASSE", ignore_case=True), "Hauptstraße"))[0] == 1.0


async def test_contains_takes_the_reference_without_its_margins():
    assert await result(ContainsGrader(), "It is four.", " four\n") == (1.0, "contains 'four'")
    with pytest.raises(GradingError, match="needs a string that is not empty in metadata"):
        await result(ContainsGrader(), "It is four.", " \n")


@pytest.mark.parametrize("text", ["", [], ["a", ""], 3, ["a", 3], b"a", {"a": 1}])
def test_a_text_that_cannot_be_contained_is_refused(text):
    with pytest.raises(ConfigurationError, match="must be a string that is not empty, or a list of such strings"):
        ContainsGrader(text)


# Numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It is 42.", 42),
        ("1, 2, 3", 3),
        ("#### 72", 72),
        ("$1,234.50", 1234.5),
        ("1,234,567 people", 1234567),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("-$7", -7),
        ("10-7", 7),  # a difference
        ("GPT-4", 4),  # a hyphen
        ("x = -7", -7),
        ("答案是-7", -7),
        (".5", 0.5),
        ("5e-3", 0.005),
        ("6.02×10^23", 6.02e23),
        (r"6.02 \times 10^{-3}", 0.00602),
        ("3/4", 0.75),
        ("-1 3/4", -1.75),
        ("1.5 / 2", 0.75),
        ("01/02/2024", 2024),  # a date
        ("1 / 2 / 4", 4),
        ("50%", 50),
        ("7 m2 of H2O", 7),
        ("3.11.7", 3.11),
        (r"\boxed{42}", 42),
        ("**42**", 42),
        ("٤٢", 42),
    ],
)
def test_the_last_number(text, value):
    assert float(last_number(text).value) == value


@pytest.mark.parametrize("text", ["", "none", "H2O", "v1.2", "½", "-", "."])
def test_no_number(text):
    assert last_number(text) is None


SENTENCES = st.sampled_from(["{}", "It is {}.", "**{}**", "= {}", "1 or 2 or {} apples", r"\boxed{{{}}}", "${}$"])
DECIMALS = st.decimals(-(10**12), 10**12, places=4)


@given(DECIMALS, st.sampled_from(["{:f}", "{:,f}", "{:e}", "{:E}", "{:+f}"]), SENTENCES)
def test_a_decimal_number_is_read_as_what_it_is(value, form, sentence):
    assert last_number(sentence.format(form.format(value))).value == value


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6), SENTENCES)
def test_a_fraction_is_read_as_what_it_is(numerator, denominator, sentence):
    value = last_number(sentence.format(f"{numerator}/{denominator}")).value
    assert abs(Fraction(value) - Fraction(numerator, denominator)) < Fraction(1, 10**40)


@given(st.text())
def test_any_text_has_a_last_number_or_none(text):
    number = last_number(text)
    assert number is None or number.text in text


async def test_numeric_compares_last_numbers():
    assert await result(NumericGrader(), "6 times 7 is 42", "so 6*7 = 42.0") == (
        1.0, "the last number is 42, expected 42.0",
    )  # fmt: skip
    assert await result(NumericGrader(), "42 or 43", "42") == (0.0, "the last number is 43, expected 42")
    assert await result(NumericGrader(), "no idea", "42") == (0.0, "no number in 'no idea', expected 42")
    assert (await result(NumericGrader(), "1/3", "0.3333333"))[0] == 1.0
    assert (await result(NumericGrader(), "1/0", "0"))[0] == 0.0


async def test_numeric_takes_references_that_are_numbers():
    for reference in (42, 42.0, Fraction(42)):
        assert (await result(NumericGrader(), "42", reference))[0] == 1.0


async def test_tolerances_are_exact_at_their_limit():
    # as floats 0.4 - 0.1 is more than 0.3, and 0.3 is less than 3/10
    for found, reference, expected in (("0.4", "0.1", 1.0), ("0.41", "0.1", 0.0), ("-0.4", "-0.1", 1.0)):
        assert (await result(NumericGrader(absolute_tolerance=0.3), found, reference))[0] == expected
    relative = NumericGrader(absolute_tolerance=0, relative_tolerance=0.01)
    for found, reference, expected in (
        ("101", "100", 1.0),
        ("101.01", "100", 0.0),
        ("0", "0", 1.0),
        ("1e-9", "0", 0.0),
    ):
        assert (await result(relative, found, reference))[0] == expected


@given(DECIMALS, DECIMALS)
def test_the_difference_decides(found, reference):
    with_tolerance = abs(found - reference) <= Decimal("0.5")
    check = NumericGrader(absolute_tolerance=0.5).check(f"{found:f}", answer("", f"{reference:f}"))
    with pytest.raises(StopIteration) as done:
        check.send(None)
    assert done.value.value[0] is with_tolerance


@pytest.mark.parametrize("reference", ["n/a", "", "1e999999999999999999999", "1/0"])
async def test_a_reference_without_a_number_is_an_error(reference):
    with pytest.raises(GradingError, match="needs a finite number, or a text with one, in metadata"):
        await result(NumericGrader(), "42", reference)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), "1", True, None, 10**400])
@pytest.mark.parametrize("name", ["absolute_tolerance", "relative_tolerance"])
def test_a_tolerance_is_a_number(name, tolerance):
    with pytest.raises(ConfigurationError, match=f"{name}=.* must be a finite number of at least 0"):
        NumericGrader(**{name: tolerance})
