"""Standard errors and pass@k against numbers made by hand and by brute force."""

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant.stats import pass_at_k, standard_error, summarize_scores

numbers = st.floats(-100, 100)


def test_completions_of_one_prompt_are_not_independent():
    """Two prompts, each with the same grade twice: as certain as two grades, not as four."""
    assert standard_error([0, 0, 1, 1], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert standard_error([0, 0, 1, 1]) == pytest.approx(math.sqrt(1 / 3) / 2)
    assert summarize_scores([0, 0, 1, 1], ["a", "a", "b", "b"])["score/stderr"] == pytest.approx(0.5)


def test_a_weighted_mean():
    """Loss 1 on 3 tokens, 3 on 1 token: mean 1.5, residuals -1.5 and 1.5."""
    assert standard_error([1, 3], weights=[3, 1]) == pytest.approx(math.sqrt(2 * (1.5**2 + 1.5**2)) / 4)


@given(st.lists(numbers, min_size=2, max_size=20))
def test_one_value_a_group_is_the_textbook_formula(values):
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert standard_error(values) == pytest.approx(expected, abs=1e-9)
    assert standard_error(values, list(range(len(values))), [2.0] * len(values)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=8))
def test_equal_groups_are_as_one_value_each(groups):
    values = [value for group in groups for value in group]
    labels = [index for index, group in enumerate(groups) for _ in group]
    means = [statistics.fmean(group) for group in groups]
    assert standard_error(values, labels) == pytest.approx(standard_error(means), abs=1e-9)


def test_what_is_unknown_is_left_out():
    assert standard_error([1.0]) is None
    assert standard_error([1.0, 2.0], ["a", "a"]) is None
    assert standard_error([]) is None
    assert "score/stderr" not in summarize_scores([1.0])


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(case):
    n, c, k = case
    draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))
