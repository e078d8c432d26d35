"""The tokenizer that a model is given: ours is a copy, and one that is not the model's is refused when loading."""

import copy
import shutil

import pytest
import torch
from support import training_model
from tiny_model import byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from descant import (
    SFT,
    CallbackRunner,
    EvaluationPlacement,
    ExactMatchGrader,
    GraderEvalCallback,
    ModelBuilder,
    ModelCallback,
    StringThread,
    ToolCall,
    live_model,
)  # fmt: skip
from descant.errors import ConfigurationError, ModelLoadError

TEXTS = [f"text {'x' * (n % 40)}" for n in range(120)]


class RenderingCallback(ModelCallback[int]):
    """Renders and generates in the background."""

    async def measure(self, model):
        threads = [StringThread().user("q" * n).assistant("a" * n) for n in range(1, 20)]
        rendered = await model.tokenize_many(threads)
        await model.max_gen_len(2).generate_many(threads[:2])
        return sum(len(thread.token_ids) for thread in rendered)

    async def report(self, measurement):
        return {"tokens": measurement}


async def test_batches_that_are_padded_and_truncated_are_as_without_callbacks(qwen3_dir, tmp_path):
    module, tokenizer = AutoModelForCausalLM.from_pretrained(qwen3_dir), AutoTokenizer.from_pretrained(qwen3_dir)

    def batch(step):
        return tokenizer(TEXTS[step : step + 4], padding=True, truncation=True, max_length=24)["input_ids"]

    alone = [batch(step) for step in range(60)]
    model = live_model(module, tokenizer)
    callback = RenderingCallback(model, 1 / 20, "rendering", mode="background")
    options = {"callback_placement": EvaluationPlacement("thread")}
    batches = []
    async with CallbackRunner([callback], num_steps=60, run_dir=tmp_path / "run", **options) as runner:
        for step in range(60):
            batches.append(batch(step))
            await runner.after_step(step + 1, {"training/loss": 0.0})
    assert batches == alone
    assert runner.failures == []
    assert tokenizer.backend_tokenizer.padding is not None  # as the loop has set it


def test_what_pads_elsewhere_does_not_pad_here(qwen3_dir):
    tokenizer = AutoTokenizer.from_pretrained(qwen3_dir)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.enable_truncation(3)
    model = live_model(AutoModelForCausalLM.from_pretrained(qwen3_dir), tokenizer)
    tokenizer.chat_template = None  # ours is as it was
    rendered = model._renderer.render(StringThread().user("a").assistant("b"))
    assert model._renderer.tokenizer.decode(rendered.last_content()) == "b"
    assert tokenizer.backend_tokenizer.padding["length"] == 64


def word_tokenizer(size):
    vocabulary = {"[UNK]": 0, **{f"w{i}": i for i in range(1, size)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


FOREIGN = {
    "more tokens than the model": (word_tokenizer(500), r"it has token 49\d \('w49\d'\), and the model has 259"),
    "another end of text": (word_tokenizer(50), r"ends its texts with token 256 .* which the tokenizer does not have"),
    "no vocabulary": (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),
        "makes no tokens of text .its files may be missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
async def test_a_tokenizer_of_another_model_is_refused_when_loading(qwen3_dir, tmp_path, case):
    tokenizer, message = copy.deepcopy(FOREIGN[case][0]), FOREIGN[case][1]
    tokenizer.chat_template = byte_tokenizer().chat_template
    with pytest.raises(ModelLoadError, match=message):
        live_model(AutoModelForCausalLM.from_pretrained(qwen3_dir), tokenizer)
    shutil.copytree(qwen3_dir, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelLoadError, match=message):
        await ModelBuilder(tmp_path / "model").spawn_inference("x")


async def test_a_directory_without_a_tokenizer_is_refused_when_loading(qwen3_dir, tmp_path):
    shutil.copytree(qwen3_dir, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelLoadError, match=r"model' has no tokenizer"):
        await ModelBuilder(tmp_path / "model").spawn_train("policy", max_batch_size=64)


def test_no_tokenizer_and_one_that_cannot_be_copied_are_refused(qwen3_dir):
    module = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    with pytest.raises(ConfigurationError, match="tokenizer=None"):
        live_model(module, None)
    with pytest.raises(ModelLoadError, match="not a fast tokenizer"):
        live_model(module, "gpt2")


def test_live_model_takes_a_processor_and_warns_as_the_builder_does(qwen3_dir):
    class Processor:
        tokenizer = byte_tokenizer()
        chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

    Processor.tokenizer.chat_template = None
    module = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    with pytest.warns(UserWarning, match="writes no end-of-turn token"):
        live_model(module, Processor())
    module.generation_config.eos_token_id = 35
    with pytest.warns(UserWarning, match="ends at token 35 .eos_token_id of the model., which is the text 'D'"):
        live_model(module, byte_tokenizer())


CALLING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
)
FACTS = {
    "calls": [StringThread().user(f"{a}?").assistant("", [ToolCall("f", {"x": 7})]) for a in range(3)],
    "answers": [StringThread().user(f"{a}?").assistant(f"{a * 37}") for a in range(3)],
}


@pytest.mark.parametrize("kind", FACTS)
async def test_what_was_learned_equals_its_reference(qwen3_dir, tmp_path, kind):
    """Calls are in the template's own words; its header is not learned, though it writes no generation prompt."""
    shutil.copytree(qwen3_dir, tmp_path / "model", ignore=shutil.ignore_patterns("chat_template*"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CALLING
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    async with training_model(tmp_path / "model") as model:
        callback = GraderEvalCallback(FACTS[kind], model, ExactMatchGrader(), 1, max_gen_len=48)
        options = {"samples_per_batch": 3, "lr": 1e-2, "callbacks": [callback], "run_dir": tmp_path / "run"}
        trainer = SFT(dataset=FACTS[kind] * 60, model=model, **options)
        result = await trainer.run()
    references = [example.reference for example in callback.examples]
    expected = ['<call>{"name": "f", "arguments": {"x": 7}}'] * 3
    assert references == (expected if kind == "calls" else ["0", "37", "74"])
    assert [example.thread.metadata["reference"] for example in callback.examples] == references
    assert result.metrics["validation/rewards/score/mean"] == 1.0
