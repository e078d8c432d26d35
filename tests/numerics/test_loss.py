"""Losses and gradients against an independent computation: Transformers' own forward pass, one thread at a time."""

import asyncio
import math

import pytest
import torch
from support import ragged_threads, training_model, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant import StringThread, ValidationLossCallback
from descant.engine import score, training_step
from descant.errors import DescantError
from descant.losses.loss import LossSums

BUDGETS = [201, 202, 260, 333, 512, 777, 1500, 4096, 10**9]  # the longest thread has 201 tokens


def reference_nll(path, threads):
    """Per thread: the weighted sum of negative log-likelihoods, and the sum of weights; and the gradient of all.

    Positions are found in the text: contents are followed in the render, independently of descant's renderer.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sums = []
    total = 0.0
    for thread in threads:
        ids, weights = [], []
        for (role, content), weight in zip(thread.get_turns(), thread.get_turn_weights(), strict=True):
            head = tokenizer(f"<|im_start|>{role}\n")["input_ids"]
            body = tokenizer(f"{content}<|im_end|>")["input_ids"]
            tail = tokenizer("\n")["input_ids"]
            ids += head + body + tail
            weights += [0.0] * len(head) + [weight] * len(body) + [0.0] * len(tail)
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        weighted = (nll * torch.tensor(weights[1:])).sum()
        total = total + weighted
        sums.append((weighted.item(), sum(weights)))
    (total / sum(weight for _, weight in sums)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sums, gradients


def without_dropout(model):
    engine = model._worker._loop._engine
    for module in engine.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return engine


@pytest.mark.parametrize("max_batch_size", BUDGETS)
async def test_loss_and_gradient_are_the_mean_over_tokens_for_every_budget(model_dir, max_batch_size):
    threads = ragged_threads(24)
    threads[3] = threads[3].with_turn_weights([0.5 * w for w in threads[3].get_turn_weights()])
    sums, expected = reference_nll(model_dir, threads)
    expected_loss = sum(nll for nll, _ in sums) / sum(weight for _, weight in sums)
    async with training_model(model_dir, max_batch_size=max_batch_size) as model:
        engine = without_dropout(model)
        await model.train_language_modelling_many(threads)
        gradients = {name: p.grad / engine.training_step.denominator for name, p in engine.model.named_parameters()}
        metrics = await model.optim_step(lr=0.0)
    assert metrics["loss"] == pytest.approx(expected_loss, abs=1e-6)
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize("max_batch_size", [1, 90, *BUDGETS])  # a longer thread is scored on its own
async def test_validation_loss_is_the_mean_over_tokens_for_every_budget(model_dir, max_batch_size):
    threads = ragged_threads(24)
    threads[5] = threads[5].with_turn_weights([0.25 * w for w in threads[5].get_turn_weights()])
    sums, _ = reference_nll(model_dir, threads)
    async with training_model(model_dir, max_batch_size=max_batch_size) as model:
        metrics = await ValidationLossCallback(threads, model).maybe_call(0.0)
    loss = sum(nll for nll, _ in sums) / sum(weight for _, weight in sums)
    assert metrics["validation/loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["validation/perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    per_sample = sum(nll / weight for nll, weight in sums) / len(sums)
    assert metrics["validation/loss_per_sample"] == pytest.approx(per_sample, abs=1e-6)


@pytest.mark.parametrize("max_batch_size", BUDGETS)
async def test_a_loss_has_columns_statistics_and_a_denominator_of_its_own(qwen3_dir, max_batch_size, monkeypatch):
    """A mean over sequences, of one column per token and one per sequence, against plain torch."""

    def scaled(logprobs_N, columns):
        products_N = logprobs_N.double() * columns["advantage"] * columns["weight"].double()
        sums_S = torch.zeros_like(columns["scale"]).index_add(0, columns["sequence"], products_N)
        num_sequences = torch.tensor(len(sums_S))
        return LossSums(-(sums_S * columns["scale"]).sum(), num_sequences, {"scale": columns["scale"].sum()})

    monkeypatch.setitem(training_step.LOSSES, "scaled", scaled)
    async with training_model(qwen3_dir, max_batch_size=max_batch_size) as model:
        engine = without_dropout(model)
        tokenized = await model.tokenize_many(ragged_threads(12))
        columns = [
            {"advantage": tuple(math.sin(i + j) for j in range(len(thread.token_ids))), "scale": 1.0 + i}
            for i, thread in enumerate(tokenized)
        ]
        reference = AutoModelForCausalLM.from_pretrained(qwen3_dir)
        total = torch.zeros((), dtype=torch.float64)
        for thread, column in zip(tokenized, columns, strict=True):
            ids = torch.tensor(thread.token_ids)
            logprobs = torch.log_softmax(reference(ids.unsqueeze(0)).logits[0, :-1].double(), -1)
            products = logprobs.gather(-1, ids[1:, None])[:, 0] * torch.tensor(column["advantage"])[1:]
            total = total - (products * torch.tensor(thread.token_weights())[1:]).sum() * column["scale"]
        (total / len(tokenized)).backward()

        await model.accumulate_many(tokenized[:5], "scaled", columns=columns[:5])
        await model.accumulate_many(tokenized[5:], "scaled", columns=columns[5:])
        with pytest.raises(DescantError, match=r"has the loss 'scaled' already, so 'language_modelling' cannot"):
            await model.train_language_modelling_many(ragged_threads(2))
        for name, parameter in reference.named_parameters():
            found = dict(engine.model.named_parameters())[name].grad / engine.training_step.denominator
            assert (found - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
        metrics = await model.optim_step(lr=0.0)
    assert metrics["loss"] == pytest.approx(total.item() / 12, rel=1e-6)
    assert metrics["scale"] == pytest.approx(6.5)
    assert metrics["num_samples"] == 12


async def test_chunks_of_the_output_layer_change_nothing(qwen3_dir, monkeypatch):
    threads = ragged_threads(12)

    async def loss_and_gradient():
        async with training_model(qwen3_dir) as model:
            await model.train_language_modelling_many(threads)
            engine = model._worker._loop._engine
            gradients = {name: p.grad.clone() for name, p in engine.model.named_parameters()}
            return (await model.optim_step(lr=0.0))["loss"], gradients

    whole_loss, whole = await loss_and_gradient()
    monkeypatch.setattr(score, "MAX_LOGITS", 259 * 7)  # seven rows of logits at a time
    chunked_loss, chunked = await loss_and_gradient()
    assert chunked_loss == pytest.approx(whole_loss, abs=1e-9)
    for name, gradient in whole.items():
        assert (chunked[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


async def test_a_model_with_more_than_an_output_layer_is_scored_through_its_own_forward(tmp_path):
    """Gemma 2 caps its logits: the output layer on the hidden state alone would be wrong."""
    from tiny_model import save_model
    from transformers import Gemma2Config

    config = Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, final_logit_softcapping=0.5, initializer_range=0.3,
    )  # fmt: skip
    path = save_model(tmp_path / "gemma2", config)
    threads = ragged_threads(6)
    sums, _ = reference_nll(path, threads)
    async with training_model(path) as model:
        assert await model.logprobs_many(threads) == pytest.approx([-nll for nll, _ in sums], abs=1e-4)


async def test_logprobs_agree_with_the_list_form_and_with_single_calls(model_dir):
    threads = ragged_threads(10)
    sums, _ = reference_nll(model_dir, threads)
    async with training_model(model_dir) as model:
        listed = await model.logprobs_many(threads)
        gathered = await asyncio.gather(*(model.logprobs(thread) for thread in threads))
        per_token = await model.logprobs_per_token(await model.tokenize_thread(threads[0]))
    assert listed == pytest.approx([-nll for nll, _ in sums], abs=1e-4)
    assert gathered == pytest.approx(listed, abs=1e-4)
    assert sum(per_token) == pytest.approx(listed[0], abs=1e-5)
    contents = [turn.content for turn in threads[0].get_turns() if turn.role == "assistant"]
    assert len(per_token) == sum(len(content) + 1 for content in contents)  # and one end of turn each


async def test_a_step_of_adamw_is_that_of_torch(model_dir):
    threads = ragged_threads(8)
    settings = {"lr": 1e-2, "wd": 0.1, "max_grad_norm": 0.5}
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    _, gradients = reference_nll(model_dir, threads)
    named = dict(reference.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": settings["wd"]},
            {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings["lr"],
    )
    for name, parameter in named.items():
        parameter.grad = gradients.get(name)
    norm = torch.nn.utils.clip_grad_norm_(named.values(), settings["max_grad_norm"])
    optimizer.step()
    async with training_model(model_dir) as model:
        without_dropout(model)
        await model.train_language_modelling_many(threads)
        metrics = await model.optim_step(**settings)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        for name, weights in weights_of(model).items():
            # AdamW's first update is lr * sign(gradient) wherever the gradient is not tiny
            assert torch.allclose(weights, named[name], atol=2e-4), name


async def test_training_calls_made_one_by_one_are_one_step(qwen3_dir):
    threads = [StringThread().user("u" * i).assistant("a" * i) for i in range(1, 9)]
    async with training_model(qwen3_dir) as model:
        await asyncio.gather(*(model.train_language_modelling(thread) for thread in threads))
        gathered = await model.optim_step(lr=0.0)
        await model.train_language_modelling_many(threads)
        listed = await model.optim_step(lr=0.0)
    assert gathered == listed
    assert gathered["num_samples"] == 8
