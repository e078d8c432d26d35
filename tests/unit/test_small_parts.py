"""Tables, metric values, summaries, seeds and safe text."""

import math

import numpy as np
import pytest
import torch

from descant import Table
from descant.errors import ConfigurationError
from descant.metrics import as_metric
from descant.seeds import derive_seed
from descant.stats import summarize_lengths, summarize_scores
from descant.text import duration, printable


def test_a_table_keeps_cell_types_and_order():
    table = Table(["name", "score"]).add_row(["a", 1]).add_rows([["b", 2.5], ["c", None]])
    assert table["score"] == [1, 2.5, None]
    assert table.as_dicts()[1] == {"name": "b", "score": 2.5}
    assert table.add_column("ok", [True, False, True])["ok"] == [True, False, True]
    assert "ok" in table
    assert "missing" not in table
    assert len(table) == 3


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: Table(["a", "a"]),
        lambda: Table(["a"]).add_row([1, 2]),
        lambda: Table(["a"], [[1]]).add_column("b", [1, 2]),
        lambda: Table(["a"]).add_column("a", []),
    ],
)
def test_a_table_refuses_what_does_not_fit(misuse):
    with pytest.raises(ConfigurationError):
        misuse()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (True, 1),
        (0.5, 0.5),
        ("text", "text"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), 1),
        (np.array(2.0), 2.0),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([4]), 4),
        (float("inf"), math.inf),
        (2**70, float(2**70)),
    ],
)
def test_numbers_of_every_library_become_plain_numbers(value, expected):
    metric = as_metric(value)
    assert metric == expected
    assert type(metric) in (int, float, str)


def test_nan_is_recorded_and_not_hidden():
    assert math.isnan(as_metric(float("nan")))


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, np.zeros(3), torch.zeros(2, 2), object(), 1j])
def test_what_is_not_a_metric_is_named(value):
    with pytest.raises(TypeError, match="a number, a string or a Table is needed") as error:
        as_metric(value)
    assert type(value).__name__ in str(error.value)


def test_graders_report_the_sample_deviation_and_lengths_the_population_one():
    assert summarize_scores([1.0, 2.0, 6.0]) == {
        "score/mean": 3.0,
        "score/std": math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2),
        "score/min": 1.0,
        "score/max": 6.0,
        "score/count": 3,
        "score/stderr": pytest.approx(math.sqrt(7 / 3)),
    }
    assert summarize_lengths([1, 2, 6]) == {
        "generation_length_mean": 3.0,
        "generation_length_std": math.sqrt(14 / 3),
        "generation_length_stderr": pytest.approx(math.sqrt(7 / 3)),
    }


def test_one_score_has_no_spread_and_none_have_no_mean():
    assert summarize_scores([2.0])["score/std"] == 0.0
    assert summarize_scores([]) == {"score/count": 0}
    assert summarize_lengths([]) == {}


def test_seeds_are_pinned():
    """Changing these values would change every run: only on purpose."""
    assert derive_seed(0, "validation", "abc") == 7738114059508108161
    assert derive_seed(1, 23) != derive_seed(12, 3) != derive_seed("1", 23)
    assert 0 <= derive_seed("x") < 2**63


@pytest.mark.parametrize("attack", ["\x1b[2J", "\x1b]0;title\x07", "\r", "\x9b31m", "\u202egnp.exe", "\u2028", "\x00"])
def test_text_of_a_model_cannot_control_a_terminal(attack):
    shown = printable(f"a{attack}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


def test_long_text_is_cut():
    assert printable("x" * 100, 10) == "x" * 9 + "…"


DURATIONS = {
    0: "0.0 s", 0.0006: "0.6 ms", 0.035: "35 ms", 0.354: "0.35 s", 1: "1.0 s", 42.3: "42 s", 750: "12.5 min",
    11100: "3 h 05 min",
}  # fmt: skip


@pytest.mark.parametrize("seconds", DURATIONS)
def test_a_duration_has_two_or_three_digits(seconds):
    assert duration(seconds) == DURATIONS[seconds]
