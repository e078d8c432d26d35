"""Generation against Transformers' own."""

import asyncio

import pytest
import torch
from support import ragged_threads, training_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant import ModelBuilder, StringThread
from descant.errors import ConfigurationError, SequenceTooLongError

NUM_NEW = 24


@pytest.fixture
def prompts():
    return [thread.without_completion() for thread in ragged_threads(17)]


def transformers_greedy(path, thread):
    """The tokens of ``model.generate`` for one prompt, and the smallest gap between the two best logits."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    messages = [{"role": role, "content": content} for role, content in thread.get_turns()]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=NUM_NEW, output_logits=True, return_dict_in_generate=True
    )
    best = torch.stack(output.logits)[:, 0].topk(2).values
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), (best[:, 0] - best[:, 1]).min().item()


async def test_greedy_tokens_equal_those_of_transformers(model_dir, prompts):
    async with training_model(model_dir) as model:
        greedy = model.temperature(0).max_gen_len(NUM_NEW)
        generated = await greedy.generate_tokens_many(prompts)
    num_compared = 0
    for prompt, thread in zip(prompts, generated, strict=True):
        expected, gap = transformers_greedy(model_dir, prompt)
        if gap > 1e-5:  # at a tie, rounding decides
            num_compared += 1
            assert list(thread.token_ids[-len(expected) :]) == expected
    assert num_compared > len(prompts) // 2


async def test_rows_that_finish_leave_and_the_others_go_on(tmp_path):
    """A model trained to stop early for some prompts and late for others gives each its own answer in one batch."""
    from tiny_model import save_model
    from transformers import Qwen3Config

    config = Qwen3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    threads = [StringThread().user(c).assistant(c * n) for c, n in zip("abcdef", [1, 9, 3, 0, 12, 5], strict=True)]
    async with training_model(save_model(tmp_path / "m", config)) as model:
        for _ in range(60):
            await model.train_language_modelling_many(threads)
            await model.optim_step(lr=5e-3)
        greedy = model.temperature(0).max_gen_len(20)
        prompts = [thread.without_completion() for thread in threads]
        together = await greedy.generate_tokens_many(prompts)
        alone = [(await greedy.generate_tokens_many([prompt]))[0] for prompt in prompts]
        model._worker._loop._engine.budgets.max_cached_tokens = 60  # two rows at a time
        in_pairs = await greedy.generate_tokens_many(prompts)
    assert [t.thread.last_content() for t in together] == [thread.completion() for thread in threads]
    assert {t.finish_reason for t in together} == {"stop"}
    assert together == alone == in_pairs


async def test_sampling_depends_on_the_seed_and_not_on_the_batch(qwen3_dir, prompts):
    async def sampled(batches):
        async with training_model(qwen3_dir) as model:
            view = model.temperature(1.0).max_gen_len(8)
            return [thread for batch in batches for thread in await view.generate_many(batch)]

    together = await sampled([prompts])
    assert await sampled([prompts]) == together
    assert await sampled([[prompt] for prompt in prompts]) == together
    assert await sampled([prompts[8:], prompts[:8]]) == together[8:] + together[:8]


async def test_completions_of_one_prompt_differ_and_can_be_made_again(qwen3_dir):
    prompt = StringThread().user("Say something.")

    async def eight():
        async with training_model(qwen3_dir) as model:
            view = model.max_gen_len(8)
            listed = await view.generate_many([prompt] * 4)
            return listed + await asyncio.gather(*(view.generate(prompt) for _ in range(4)))

    first = await eight()
    assert len({thread.last_content() for thread in first}) == 8
    assert await eight() == first


async def test_lengths_and_finish_reasons(qwen3_dir):
    prompt = StringThread().user("x")
    async with training_model(qwen3_dir) as model:
        cut = await model.temperature(0).max_gen_len(5).generate_tokens(prompt)
        assert (cut.finish_reason, cut.len_last_turn()) == ("length", 5)
        long = StringThread().user("x" * 220)  # 256 positions, of which 23 are the template's
        room = 256 - len((await model.tokenize_thread(long.assistant(""))).token_ids) + 2
        to_the_end = await model.temperature(0).generate_tokens(long)
        assert to_the_end.finish_reason == "stop" or to_the_end.len_last_turn() == room


async def test_a_prompt_that_does_not_fit_fails_alone(qwen3_dir):
    prompts = [StringThread().user("ok"), StringThread().user("x" * 400), StringThread().user("fine")]
    async with training_model(qwen3_dir) as model:
        view = model.max_gen_len(4)
        first, failure, third = await view.generate_many(prompts, return_exceptions=True)
        assert isinstance(failure, SequenceTooLongError)
        assert "the model's context is 256" in str(failure)
        assert first.completion() is not None
        assert third.completion() is not None
        with pytest.raises(SequenceTooLongError):
            await view.generate_many(prompts)
        with pytest.raises(SequenceTooLongError):
            await view.generate(prompts[1])


async def test_views_share_weights_and_check_their_settings(qwen3_dir):
    async with training_model(qwen3_dir, tokens_to_generate=33) as model:
        view = model.temperature(0.5).top_p(0.9).max_gen_len(7)
        assert (view.sampling.temperature, view.sampling.top_p, view.sampling.max_gen_len) == (0.5, 0.9, 7)
        assert (model.sampling.temperature, model.sampling.max_gen_len) == (1.0, 33)
        for misuse in (
            lambda: model.temperature(-1),
            lambda: model.temperature(float("nan")),
            lambda: model.top_p(0),
            lambda: model.top_p(1.1),
            lambda: model.max_gen_len(0),
            lambda: model.max_gen_len(1.5),
        ):
            with pytest.raises(ConfigurationError):
                misuse()


async def test_an_inference_model_generates_and_scores_and_does_not_train(qwen3_dir):
    model = await ModelBuilder(qwen3_dir).spawn_inference("judge")
    thread = await model.max_gen_len(3).generate(StringThread().user("x"))
    assert await model.logprobs(thread) < 0
    assert not hasattr(model, "optim_step")
    await model.dealloc()
