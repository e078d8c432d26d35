"""How a model is driven is found out when it is loaded or handed over, and what cannot be driven is refused there."""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from support import check_against_plain_passes, training_model
from tiny_model import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MixtralConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from descant import ModelBuilder, StringThread, live_model
from descant.engine.driving import Driving
from descant.engine.probe import find_driving
from descant.errors import ConfigurationError, ModelLoadError
from descant.integrations.transformers import add_callbacks

VOCABULARY = len(byte_tokenizer())
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
THREADS = [StringThread().user("ab" * n).assistant("cd" * (1 + n % 3)) for n in (1, 9, 4, 9, 2, 6)]
PROMPTS = [thread.without_completion() for thread in THREADS]
FAST = Driving(head_gives_logits=True)


def gpt2(kind=GPT2LMHeadModel, **settings):
    torch.manual_seed(0)
    return kind(GPT2Config(**GPT2, **settings))


class WithoutPositions(GPT2LMHeadModel):
    """Its forward takes neither positions nor anything else that it does not name."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None):
        return super().forward(input_ids, past_key_values, attention_mask=attention_mask, use_cache=use_cache)


class CallsItCache(GPT2LMHeadModel):
    """What it has read so far has the name that it has in Transformers 5.24 and later."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache}
        output = super().forward(input_ids, cache, **inputs).to_tuple()
        return SimpleNamespace(logits=output[0], cache=output[1] if use_cache else None)


class TokensAlone(GPT2LMHeadModel):
    """Its forward takes token ids and nothing else."""

    def forward(self, input_ids):
        return super().forward(input_ids, use_cache=False)


class SeesTheBatch(GPT2LMHeadModel):
    """What it computes for a row depends on the number of rows, as where experts have a capacity."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer.wte.register_forward_hook(lambda _, __, output: output * (1 + 0.1 * (len(output) > 1)))


class IsRandom(GPT2LMHeadModel):
    """Never twice the same, in evaluation mode too."""

    calls = 0

    def forward(self, input_ids=None, **inputs):
        IsRandom.calls += 1
        output = super().forward(input_ids, **inputs)
        output.logits = output.logits * (1 + 0.01 * (IsRandom.calls % 7))
        return output


def live(module, **settings):
    return live_model(module, byte_tokenizer(), **settings)


@pytest.mark.parametrize(
    ("kind", "driving"),
    [
        (GPT2LMHeadModel, FAST),
        (CallsItCache, FAST),
        (WithoutPositions, Driving(True, "of any lengths", "its own", "of equal lengths")),
        (TokensAlone, Driving(True, "of any lengths", "none", "of any lengths")),
        (SeesTheBatch, Driving(True, "one at a time", "its own", "one at a time")),
    ],
)
async def test_what_a_forward_cannot_take_or_do_is_not_asked_of_it(kind, driving):
    module = gpt2(kind).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = live(module)
    assert model._worker._loop._engine.driving == driving
    slow = [str(each.message) for each in said if "driven more slowly" in str(each.message)]
    assert len(slow) == (driving != FAST)
    assert all(kind.__name__ in message for message in slow)
    await check_against_plain_passes(model, module, PROMPTS, 6)
    await model.dealloc()


def test_what_no_way_gives_the_numbers_of_plain_passes_is_refused_with_what_was_found():
    with pytest.raises(ModelLoadError, match=r"IsRandom (gives other logits|is not causal).* differ by 0\.0"):
        live(gpt2(IsRandom))
    module = gpt2()
    module.transformer.wte.weight.data[:] = float("nan")
    with pytest.raises(ModelLoadError, match="the logits of GPT2LMHeadModel are not finite: its weights are broken"):
        live(module)


def test_what_is_no_decoder_with_weights_is_refused_when_it_is_handed_over(tmp_path):
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=300))
    with pytest.raises(ConfigurationError, match="T5ForConditionalGeneration, which has an encoder"):
        live(t5)
    arguments = Seq2SeqTrainingArguments(str(tmp_path), report_to="none")
    trainer = Seq2SeqTrainer(model=t5, args=arguments, processing_class=byte_tokenizer())
    with pytest.raises(ConfigurationError, match="which has an encoder"):
        add_callbacks(trainer, lambda model: pytest.fail("the callbacks were made"))
    with torch.device("meta"):
        empty = gpt2()
    with pytest.raises(ConfigurationError, match="is on the meta device \\(not loaded yet"):
        live(empty)


async def test_handing_over_a_model_changes_nothing_of_it():
    """Weights, modes, gradients, configuration, hooks, and the generators that all share."""
    module = gpt2(embd_pdrop=0.5).train()
    module.transformer.h[0].eval()
    module(input_ids=torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()

    def state():
        return (
            {name: tensor.clone() for name, tensor in module.state_dict().items()},
            {name: parameter.grad.clone() for name, parameter in module.named_parameters()},
            [torch.get_rng_state()],
        )

    before, modes, config = state(), [each.training for each in module.modules()], module.config.to_dict()
    model = live(module)
    for tensors, expected in zip(map(list, map(_values, state())), map(list, map(_values, before)), strict=True):
        assert all(map(torch.equal, tensors, expected))
    assert [each.training for each in module.modules()] == modes
    assert module.config.to_dict() == config
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
    await model.dealloc()


@pytest.mark.parametrize("size", [0.02, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_does_not_depend_on_the_weights_or_their_precision(size, dtype):
    """Untrained weights hardly show what is lost of the context, rounding in bfloat16 hides it."""
    torch.manual_seed(0)
    mixtral = MixtralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, initializer_range=size,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(mixtral, dtype=dtype)
    assert find_driving(module) == FAST
    mamba = MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, state_size=8, initializer_range=size)
    found = find_driving(AutoModelForCausalLM.from_config(mamba, dtype=dtype))
    assert (found.cache, found.generation) == ("its own", "of any lengths")


@pytest.mark.parametrize("flag", ["output_router_logits", "output_hidden_states", "return_dict"])
async def test_flags_of_a_configuration_that_training_sets_change_no_number(flag):
    """TRL asks mixtures of experts for their router's logits."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, eos_token_id=None,
        )
    )  # fmt: skip
    model = live(module)
    greedy = model.temperature(0).max_gen_len(6)
    expected = await greedy.generate_many(PROMPTS), await model.logprobs_many(THREADS)
    changed = not getattr(module.config, flag)
    setattr(module.config, flag, changed)
    later = live(module)  # handed over with the flag, and before it was set
    for each in (model, later):
        found = await each.temperature(0).max_gen_len(6).generate_many(PROMPTS), await each.logprobs_many(THREADS)
        assert found == expected
    assert getattr(module.config, flag) is changed
    await model.dealloc()
    await later.dealloc()


async def test_a_directory_with_flags_loads_and_gives_the_same_numbers(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        expected = await model.logprobs_many(THREADS)
    shutil.copytree(qwen3_dir, tmp_path / "flagged")
    file = tmp_path / "flagged" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "return_dict": False, "output_hidden_states": True}))
    async with training_model(tmp_path / "flagged") as model:
        assert await model.logprobs_many(THREADS) == expected
        await model.max_gen_len(4).generate(PROMPTS[0])


async def test_settings_of_a_generation_config_that_are_not_applied_are_said(qwen3_dir, tmp_path):
    shutil.copytree(qwen3_dir, tmp_path / "model")
    settings = {
        "repetition_penalty": 1.3,
        "suppress_tokens": [5],
        "temperature": 0.6,
        "do_sample": True,
        "num_beams": 1,
    }
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match=r"says repetition_penalty=1.3, suppress_tokens=\[5\], which is not applied"):
        model = await ModelBuilder(tmp_path / "model").spawn_inference("x")
    await model.dealloc()
    module = gpt2()
    module.generation_config.no_repeat_ngram_size = 2
    with pytest.warns(UserWarning, match="GPT2LMHeadModel: its generation_config says no_repeat_ngram_size=2, which"):
        await live(module).dealloc()


def _values(each):
    return each.values() if isinstance(each, dict) else each
