"""One bad sequence in a batch: it fails alone, and the others have the numbers that they would have without it."""

import math

import pytest
import torch
from support import addition_threads, query, ragged_threads, training_model, weights_of
from tiny_model import save_model
from transformers import Qwen3Config

from descant import SFT, StringThread, ValidationLossCallback
from descant.errors import (
    NonFiniteError,
    NonFiniteSequenceError,
    NoTrainedTokensError,
    RequestError,
    SequenceTooLongError,
)
from descant.threads.tokenized import TokenizedThread, TurnSpan

THREADS = ragged_threads(10)
FORBIDDEN = "~"


@pytest.fixture(scope="module")
def untied_dir(tmp_path_factory):
    """A model whose input embedding of one byte is NaN: what stands before and elsewhere is not touched by it."""
    config = Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    return save_model(tmp_path_factory.mktemp("models") / "untied", config)


def poison(model):
    engine = model._worker._loop._engine
    (token,) = engine.tokenizer(FORBIDDEN)["input_ids"]
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[token] = float("nan")


def gradients_of(model):
    engine = model._worker._loop._engine
    return {
        n: p.grad / engine.training_step.denominator for n, p in engine.model.named_parameters() if p.grad is not None
    }


BAD = {
    "NaN": (StringThread().user(FORBIDDEN).assistant("abc"), NonFiniteSequenceError, "are not finite"),
    "over-long": (StringThread().user("x").assistant("y" * 300), SequenceTooLongError, "max_batch_size|context is 256"),
    "nothing trained": (StringThread().user("x").assistant("y").with_turn_weights([0, 0]), NoTrainedTokensError, "no"),
}  # fmt: skip


@pytest.mark.parametrize("position", [0, 5, 10])
@pytest.mark.parametrize("kind", ["NaN", "over-long", "nothing trained"])
async def test_a_bad_thread_fails_alone_in_scoring_and_training(untied_dir, kind, position):
    bad, error_type, message = BAD[kind]
    threads = [*THREADS[:position], bad, *THREADS[position:]]
    async with training_model(untied_dir, max_batch_size=400) as model:
        poison(model)
        alone = await model.logprobs_many(THREADS)
        await model.train_language_modelling_many(THREADS)
        expected = gradients_of(model)
        await model.discard_gradient()

        scored = await model.logprobs_many(threads, return_exceptions=True)
        with pytest.raises(error_type, match=message):
            raise scored.pop(position)
        assert scored == pytest.approx(alone, rel=1e-6)

        outcomes = await model.train_language_modelling_many(threads, return_exceptions=True)
        assert [type(o).__name__ for o in outcomes if o is not None] == [error_type.__name__]
        assert outcomes[position] is not None
        found = gradients_of(model)
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-7), name


async def test_a_bad_prompt_fails_alone_in_generation(untied_dir):
    prompts = [thread.without_completion() for thread in addition_threads(7)]
    async with training_model(untied_dir) as model:
        poison(model)
        view = model.temperature(0.0).max_gen_len(8)
        alone = await view.generate_many(prompts)
        bad = [StringThread().user(FORBIDDEN), StringThread().user("x" * 300)]
        mixed = await view.generate_many(
            [prompts[0], bad[0], *prompts[1:4], bad[1], *prompts[4:]], return_exceptions=True
        )
        assert isinstance(mixed.pop(5), SequenceTooLongError)
        with pytest.raises(RequestError, match="the logits of token 1 are not finite"):
            raise mixed.pop(1)
        assert mixed == alone


async def test_a_token_outside_of_the_vocabulary_fails_alone(untied_dir):
    """On a GPU such a token would end the process."""
    async with training_model(untied_dir) as model:
        good = await model.tokenize_thread(THREADS[0])
        for token in (259, -1):
            ids = (1, 2, token, 3)
            bad = TokenizedThread(THREADS[0], ids, (TurnSpan("assistant", 1, 4, 4),), (1.0,))
            scored = await model.logprobs_per_token_many([good, bad], return_exceptions=True)
            assert scored[0] == await model.logprobs_per_token(good)
            with pytest.raises(RequestError, match=f"token {token} is not in the model's vocabulary of 259"):
                raise scored[1]


async def test_sft_counts_such_threads_and_goes_on(untied_dir, tmp_path):
    bad = BAD["NaN"][0]
    bad.source = "data.jsonl:3"
    async with training_model(untied_dir) as model:
        poison(model)
        loss = ValidationLossCallback([*THREADS, bad], model, frequency=1.0)
        result = await SFT(dataset=[*THREADS, bad], model=model, callbacks=[loss], run_dir=tmp_path).run()
        finite = [t for n, t in weights_of(model).items() if n != "model.embed_tokens.weight"]
    assert all(tensor.isfinite().all() for tensor in finite)
    assert result.metrics["training/num_skipped_samples"] == 1
    assert result.metrics["validation/loss_num_failed"] == 1
    assert math.isfinite(result.metrics["validation/loss"])
    (message,) = query(tmp_path, "SELECT message FROM events WHERE kind = 'samples_skipped'")[0]
    assert "the log-probabilities of the sequence are not finite" in message


async def test_a_gradient_that_overflows_is_an_error_of_the_step(untied_dir):
    """Each loss is finite in float64, their gradient in float32 is not."""
    huge = [thread.with_turn_weights([3e38 * w for w in thread.get_turn_weights()]) for thread in THREADS]
    async with training_model(untied_dir) as model:
        before = weights_of(model)
        await model.train_language_modelling_many(huge)
        with pytest.raises(NonFiniteError, match=r"the gradient is not finite, first in .*; the weights are unchanged"):
            await model.optim_step(lr=1e-3)
        assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())
