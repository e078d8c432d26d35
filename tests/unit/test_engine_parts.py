"""Batch plans, sampling, data order and learning rates: the pure parts of training and generation."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from descant import CombinedSchedule, CosineScheduler, CosineSchedulerWithoutWarmup
from descant.engine.budgets import plan_batches
from descant.engine.sampling import sample, uniforms
from descant.errors import ConfigurationError
from descant.trainers.data_order import DataOrder


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 400))
def test_a_batch_plan_covers_everything_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    assert batches == plan_batches(lengths, budget)


def test_a_batch_plan_puts_similar_lengths_together():
    assert plan_batches([1, 9, 2, 8], 18, overhead_tokens=2) == [[1, 3], [2, 0]]


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 60), st.integers(0, 40))
def test_a_batch_plan_is_the_cheapest_cut_of_the_sorted_lengths(lengths, budget, overhead):
    def cost(batches):
        return sum(overhead + len(batch) * max(1, *batch) for batch in batches)

    def cuts(rest):
        """All ways to cut a list into runs that fit."""
        if not rest:
            yield []
        for end in range(1, len(rest) + 1):
            if end == 1 or end * rest[0] <= budget:
                for others in cuts(rest[end:]):
                    yield [rest[:end], *others]

    planned = [[lengths[i] for i in batch] for batch in plan_batches(lengths, budget, overhead)]
    assert cost(planned) == min(map(cost, cuts(sorted(lengths, reverse=True))))


def test_uniforms_are_a_pinned_function_of_seed_and_position():
    """SplitMix64's published first outputs for seed 1234567 are 6457827717110365317 and 3203168211198807973."""
    values = uniforms(torch.tensor([1234567, 1234567]), torch.tensor([0, 1])).tolist()
    assert values == [(6457827717110365317 >> 11) * 2.0**-53, (3203168211198807973 >> 11) * 2.0**-53]


def test_uniforms_are_uniform_across_seeds_and_positions():
    seeds = torch.tensor([2**62 + 977 * i for i in range(200)]).repeat_interleave(100)
    values = uniforms(seeds, torch.arange(100).repeat(200)).numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_the_numbers_of_a_request_do_not_depend_on_its_batch():
    seeds, positions = torch.tensor([5, 6, 7]), torch.tensor([0, 3, 9])
    together = uniforms(seeds, positions)
    alone = [uniforms(seeds[i : i + 1], positions[i : i + 1]).item() for i in range(3)]
    assert together.tolist() == alone


def test_sampling_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, float("-inf"), -1.0])
    grid = (torch.arange(20_000) + 0.5).double() / 20_000
    for temperature, top_p in [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0)]:
        tokens = sample(logits.expand(len(grid), -1), grid, temperature, top_p)
        shares = torch.bincount(tokens, minlength=5) / len(grid)
        assert torch.allclose(shares, torch.softmax(logits / temperature, -1), atol=1e-4)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    grid = (torch.arange(10_000) + 0.5).double() / 10_000
    kept = {0.3: [1], 0.5: [1], 0.6: [1, 3], 0.8: [1, 2, 3], 1.0: [0, 1, 2, 3]}
    for top_p, expected in kept.items():
        tokens = sample(probs.log().expand(len(grid), -1), grid, 1.0, top_p)
        assert sorted(set(tokens.tolist())) == expected
        shares = torch.bincount(tokens, minlength=4)[expected] / len(grid)
        assert torch.allclose(shares, probs[expected] / probs[expected].sum(), atol=2e-3)


def test_temperature_zero_is_greedy():
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.99]).double(), 0.0, 1.0).tolist() == [1]


def test_a_token_without_probability_is_never_sampled():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        assert sample(logits, torch.tensor([uniform]).double(), 1.0, 1.0).tolist() == [1]
        assert sample(logits, torch.tensor([uniform]).double(), 1.0, 0.9).tolist() == [1]


@given(st.integers(1, 60), st.integers(1, 25), st.fractions(Fraction(1, 7), 4), st.integers(0, 3))
def test_data_order_is_epochs_of_permutations(num_samples, per_batch, epochs, seed):
    order = DataOrder(num_samples, epochs=epochs, samples_per_batch=per_batch, seed=seed)
    steps = [order.indices(step) for step in range(1, order.num_steps + 1)]
    assert order.num_steps == math.ceil(epochs * num_samples / per_batch)
    assert all(len(step) == per_batch for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= per_batch
    drawn = [index for step in steps for index in step]
    assert len(drawn) == math.ceil(epochs * num_samples)
    for start in range(0, len(drawn) - num_samples + 1, num_samples):
        assert sorted(drawn[start : start + num_samples]) == list(range(num_samples))


def test_data_order_depends_on_its_seed_and_on_nothing_else():
    def drawn(seed):
        return DataOrder(50, epochs=2, samples_per_batch=100, seed=seed).indices(1)

    first = drawn(1)
    np.random.seed(0)
    assert drawn(1) == first
    assert drawn(2) != first
    assert first[:50] != first[50:]


def test_learning_rates_by_hand():
    cosine = CosineScheduler(lr=1.0)
    assert cosine(0.05) == pytest.approx(0.5)  # half of the warm-up
    assert cosine(0.1) == pytest.approx(1.0)
    assert cosine(0.55) == pytest.approx(0.1 + 0.5 * 0.9)  # half of the cosine
    assert cosine(1.0) == pytest.approx(0.1)
    assert CosineSchedulerWithoutWarmup(lr=1.0)(0.0) == 1.0
    assert CosineSchedulerWithoutWarmup(lr=1.0)(1.1) == pytest.approx(0.1)  # it does not turn up again
    assert CosineScheduler(lr=1.0, warmup_percentage=0)(0.5) == pytest.approx(0.55)
    combined = CombinedSchedule(lambda p: p, lambda p: 10 * p, 0.25)
    assert [combined(0.125), combined(0.25), combined(1.0)] == [0.5, 0.0, 10.0]
    with pytest.raises(ConfigurationError, match="warmup_percentage=10"):
        CosineScheduler(warmup_percentage=10)
    with pytest.raises(ConfigurationError, match="change_point=2"):
        CombinedSchedule(cosine, cosine, 2)
