from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant.errors import ConfigurationError
from descant.progress import Progress, exact_fraction, planned_steps
from descant.schedule import every


def test_a_float_means_the_simplest_rational_that_it_stands_for():
    assert exact_fraction(0.1) == Fraction(1, 10)
    assert exact_fraction(1 / 11) == Fraction(1, 11)
    assert exact_fraction(0.28) * 25 == 7
    assert exact_fraction("1/3") == Fraction(1, 3)
    assert exact_fraction(np.float32(0.1)) == Fraction(1, 10)
    assert exact_fraction(np.int64(3)) == 3
    assert exact_fraction(0.123456789) == Fraction("0.123456789")  # no denominator up to 10**6: the decimal


@given(st.integers(1, 10**6), st.data())
def test_every_fraction_of_a_run_is_found_again_from_its_float(denominator, data):
    numerator = data.draw(st.integers(0, denominator))
    assert exact_fraction(numerator / denominator) == Fraction(numerator, denominator)


@pytest.mark.parametrize(
    ("frequency", "num_steps", "expected"),
    [
        (0.25, 10, [3, 5, 8, 10]),
        (0.1, 4, [1, 2, 3, 4]),
        (0.1, 20, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (1 / 11, 11, list(range(1, 12))),
        (0.3, 10, [3, 6, 9]),
        (1, 7, [7]),
        ("1/3", 9, [3, 6, 9]),
        (np.float64(0.5), 3, [2, 3]),
    ],
)
def test_due_steps(frequency, num_steps, expected):
    assert every(frequency).due_steps(num_steps) == expected


@given(st.fractions(min_value=Fraction(1, 5000), max_value=1), st.integers(1, 3000))
def test_crossing_step_by_step_finds_exactly_the_due_steps(frequency, num_steps):
    schedule = every(frequency)
    crossed = [
        step
        for step in range(1, num_steps + 1)
        if schedule.crossed(Progress(step - 1, num_steps), Progress(step, num_steps))
    ]
    expected = sorted({ceil(k * frequency * num_steps) for k in range(1, int(1 / frequency) + 1)})
    assert crossed == expected == schedule.due_steps(num_steps)


@given(st.fractions(min_value=Fraction(1, 50), max_value=1), st.integers(1, 200), st.data())
def test_a_jump_neither_skips_nor_repeats(frequency, num_steps, data):
    schedule = every(frequency)
    stops = sorted(data.draw(st.sets(st.integers(1, num_steps))) | {num_steps})
    positions = [Progress(step, num_steps) for step in [0, *stops]]
    found = sum(schedule.crossed(a, b) for a, b in pairwise(positions))
    due = schedule.due_steps(num_steps)
    segments = zip([0, *stops], stops, strict=False)
    assert found == sum(any(a < step <= b for step in due) for a, b in segments)


@pytest.mark.parametrize(
    ("frequency", "message"),
    [
        (0, "out of range"),
        (-1, "out of range"),
        (float("nan"), "not a number"),
        (float("inf"), "not a number"),
        (10, r"did you mean 0\.1 \(every 10 % of the run\)\?"),
        (1.5, "above 1"),
        (1000, "out of range"),
        ("often", "not a number"),
        (None, "NoneType"),
        (True, "bool"),
    ],
)
def test_a_frequency_that_cannot_work_is_refused_with_what_is_allowed(frequency, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        every(frequency)
    assert repr(frequency) in str(error.value)
    assert "above 0 and at most 1" in str(error.value)


def test_schedules_read_well():
    assert str(every(0.1)) == "every 10 %"
    assert str(every(1 / 3)) == "every 1/3"
    assert str(every(0.125)) == "every 12.5 %"


def test_planned_steps_are_exact():
    assert planned_steps(1, 100, 32) == 4
    assert planned_steps(0.1, 1000, 10) == 10  # 0.1 * 1000 / 10 in floats happens to agree,
    assert planned_steps(0.28, 2500, 100) == 7  # and 0.28 * 2500 / 100 is 7.000000000000001
    assert planned_steps(Fraction(1, 3), 3, 1) == 1
