"""Training's private randomness: dropout that is dropout, and that nobody else can touch."""

import random
import threading

import numpy as np
import pytest
import torch
from support import addition_threads, training_model, weights_of
from torch.nn import functional

from descant.engine.randomness import PrivateRandomness, draws_random_numbers


def private(seed=0):
    return PrivateRandomness(torch.Generator().manual_seed(seed))


def test_dropout_zeroes_and_scales():
    ones = torch.ones(200_000)
    with private():
        dropped = functional.dropout(ones, 0.25, training=True)
    assert torch.allclose(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    with private():
        assert functional.dropout(ones, 0.25, training=False) is ones
        assert functional.dropout(ones, 1.0, training=True).sum() == 0


def test_the_gradient_goes_through_the_same_mask():
    x = torch.ones(1000, requires_grad=True)
    with private():
        y = functional.dropout(x, 0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_module_dropout_and_random_functions_draw_from_the_given_generator():
    layer = torch.nn.Dropout(0.5)
    for draw in (lambda: layer(torch.ones(50)), lambda: torch.rand(50), lambda: torch.empty(50).bernoulli_(0.5)):
        with private(1):
            first = draw()
        torch.manual_seed(7)
        state = torch.get_rng_state()
        with private(1):
            assert torch.equal(draw(), first)
        assert torch.equal(torch.get_rng_state(), state)
        with private(2):
            assert not torch.equal(draw(), first)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_written_out_correctly(is_causal, masked):
    if is_causal and masked:
        return
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 5, 8, generator=generator)
    mask = torch.rand(2, 1, 5, 5, generator=generator) > 0.3 if masked else None
    if masked:
        mask[..., 0] = True
    expected = functional.scaled_dot_product_attention(query, key, value, mask, 0.0, is_causal, enable_gqa=True)
    with private():
        actual = functional.scaled_dot_product_attention(query, key, value, mask, 1e-12, is_causal, enable_gqa=True)
        dropped = functional.scaled_dot_product_attention(query, key, value, mask, 0.5, is_causal, enable_gqa=True)
    assert torch.allclose(actual, expected, atol=1e-6)
    assert not torch.allclose(dropped, expected, atol=1e-2)


async def test_dropout_is_on_in_training_and_off_in_evaluation(gpt2_dir):
    threads = addition_threads(4)
    async with training_model(gpt2_dir) as model:
        engine = model._worker._loop._engine
        assert draws_random_numbers(engine.model)
        losses = []
        for seed in (0, 0, 1):
            await model.train_language_modelling_many(threads, seed=seed)
            losses.append((await model.optim_step(lr=0.0))["loss"])
        logprobs = [await model.logprobs_many(threads) for _ in range(2)]
    assert len(set(losses)) == 3  # the step enters the seed too
    assert logprobs[0] == logprobs[1]


async def test_training_is_a_function_of_its_seed_while_others_draw_from_the_global_generators(gpt2_dir):
    """A thread that reseeds and draws all the time stands in for a user's grader that runs on while training does."""
    threads = addition_threads(32)

    async def train(disturbed):
        stop = threading.Event()

        def disturb():
            while not stop.is_set():
                torch.manual_seed(random.getrandbits(31))
                torch.rand(3)
                np.random.seed(1)
                random.seed(2)

        other = threading.Thread(target=disturb)
        if disturbed:
            other.start()
        try:
            async with training_model(gpt2_dir, max_batch_size=400) as model:
                for _ in range(4):
                    await model.train_language_modelling_many(threads, seed=3)
                    await model.optim_step(lr=1e-3)
                return weights_of(model)
        finally:
            stop.set()
            if disturbed:
                other.join()

    alone, disturbed = await train(False), await train(True)
    assert all(torch.equal(alone[name], disturbed[name]) for name in alone)


async def test_a_model_without_dropout_pays_nothing(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        assert not model._worker._loop._engine.training_step.randomness
