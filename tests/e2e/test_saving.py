"""What is saved loads again, by whom the docs say; what would not, or must not be replaced, is refused."""

import asyncio
import json
import os
import resource
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support import CountingCallback, addition_threads, query, training_model, weights_of
from tiny_model import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from descant import (
    SFT,
    BestModelCallback,
    CallbackRunner,
    CheckpointCallback,
    ModelBuilder,
    ValidationLossCallback,
    live_model,
)
from descant.engine import model_writer
from descant.errors import ConfigurationError, ModelLoadError, SaveError, WeightsError
from descant.integrations.transformers import add_callbacks

THREADS = addition_threads(4)
TOKENS = torch.arange(8).unsqueeze(0)


def logits(module):
    with torch.no_grad():
        return module.eval()(TOKENS).logits


def adapted(path, name="default", **options):
    """A model with LoRA whose weights are none of those it began with."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": "all-linear", **options})
    module = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config, name)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 10)
    return module


def live(module, path):
    return live_model(module, AutoTokenizer.from_pretrained(path))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [3, 4]},
        {"use_dora": True, "use_rslora": True, "bias": "all"},
    ],
    ids=str,
)
async def test_an_adapter_is_saved_as_peft_loads_it(qwen3_dir, tmp_path, options):
    module = adapted(qwen3_dir, **options)
    model, expected, state = live(module, qwen3_dir), logits(module), torch.get_rng_state()
    assert await model.logprobs(THREADS[0]) < 0
    path = await model.save(tmp_path / "adapter")
    assert await model.save(path) == path
    assert torch.equal(torch.get_rng_state(), state)
    assert not (path / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    assert torch.equal(logits(PeftModel.from_pretrained(base, path)), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(path)), expected)
    assert AutoTokenizer.from_pretrained(path).chat_template == AutoTokenizer.from_pretrained(qwen3_dir).chat_template
    with pytest.raises(ModelLoadError, match=rf"is an adapter .* for '{qwen3_dir}', not a model: load both with Peft"):
        await ModelBuilder(path).spawn_inference("adapter")


async def test_the_active_adapter_is_saved_whatever_its_name(qwen3_dir, tmp_path):
    module = adapted(qwen3_dir, "policy")
    module.add_adapter("ref", LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    path = await live(module, qwen3_dir).save(tmp_path / "policy")
    assert not any(entry.is_dir() for entry in path.iterdir())
    base = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    assert torch.equal(logits(PeftModel.from_pretrained(base, path)), logits(module))
    module.base_model.set_adapter(["policy", "ref"])
    with pytest.raises(SaveError, match=r"2 adapters of the model are active \(policy, ref\)"):
        await live(module, qwen3_dir).save(path)
    native = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    native.add_adapter(LoraConfig(target_modules="all-linear", init_lora_weights=False))
    path = await live(native, qwen3_dir).save(tmp_path / "native")
    base = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    assert torch.equal(logits(PeftModel.from_pretrained(base, path)), logits(native))


async def test_trained_weights_that_an_adapter_would_leave_out_are_named(qwen3_dir, tmp_path):
    module = adapted(qwen3_dir)
    module.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(SaveError, match=r"1 weights of the base model are trained .* first .*norm\.weight: name"):
        await live(module, qwen3_dir).save(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="inside of a PeftModel"):
        live(module.get_base_model(), qwen3_dir)
    plain = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    model = live(plain, qwen3_dir)
    get_peft_model(plain, LoraConfig(target_modules="all-linear"))
    with pytest.raises(SaveError, match="PEFT has wrapped the model since live_model was called"):
        await model.save(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    merged = module.merge_and_unload()
    path = await live(merged, qwen3_dir).save(tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path)), logits(merged))


def test_callbacks_in_a_trainer_with_lora_save_adapters(qwen3_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(qwen3_dir)
    trainer = SFTTrainer(
        str(qwen3_dir),
        args=SFTConfig(
            str(tmp_path / "out"), max_steps=2, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
            learning_rate=0.1, disable_tqdm=True, gradient_checkpointing=False,
        ),
        train_dataset=trl_rows(),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )  # fmt: skip
    model = live_model(trainer.model, tokenizer)
    added = add_callbacks(
        trainer,
        [
            ValidationLossCallback(THREADS, model, 0.5),
            BestModelCallback(model, "validation/loss"),
            CheckpointCallback(model, "policy", 0.5, at_end=True),
        ],
        run_dir=tmp_path / "run",
    )
    trainer.train()
    assert not added.failures
    for name in ("best", "policy-2"):
        saved = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / name)
    assert torch.equal(logits(saved), logits(trainer.model))


def trl_rows():
    from datasets import Dataset

    return Dataset.from_list([{"messages": thread.chat_messages()} for thread in THREADS])


async def test_what_would_not_load_again_does_not_count(qwen3_dir, tmp_path, monkeypatch):
    module = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    model = live(module, qwen3_dir)
    path = await model.save(tmp_path / "model")
    before = (path / "model.safetensors").read_bytes()
    module.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)  # a layer that the configuration does not describe
    with pytest.raises(
        SaveError, match=r"Qwen3ForCausalLM would not load again, .*: 2 weights .*unexpected keys.*extra"
    ):
        await model.save(path)
    del module.model.layers[0].mlp.extra
    del module.model.layers[1]
    with pytest.raises(SaveError, match=r"would not load again, .*: .* missing keys, first model\.layers\.1\."):
        await model.save(path)
    assert (path / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]

    class Other(Qwen3ForCausalLM):  # of no Auto class: it is tried with its own
        pass

    other = live(Other.from_pretrained(qwen3_dir), qwen3_dir)
    await other.save(tmp_path / "other")
    trials = []
    monkeypatch.setattr(model_writer.ModelWriter, "_model_problem", lambda self, path: trials.append(path) or "")
    await other.save(tmp_path / "again")
    assert not trials  # the same names and shapes, in files that are whole
    await other.save(tmp_path / "again", max_shard_bytes=20_000)
    assert len(trials) == 1


async def test_a_full_disk_and_offloaded_weights_leave_what_was_there(qwen3_dir, tmp_path):
    module = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    model = live(module, qwen3_dir)
    path = await model.save(tmp_path / "model")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(SaveError, match=r"File too large"):
            await model.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    module.model.norm.to("meta")
    with pytest.raises(ConfigurationError, match=r"'model\.norm\.weight' is on the meta device"):
        await model.save(path)
    with pytest.raises(ConfigurationError, match=r"'model\.norm\.weight' is on the meta device"):
        live(module, qwen3_dir)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert os.listdir(tmp_path) == ["model"]


async def test_the_run_log_and_the_best_model_survive_a_save_into_the_run_directory(qwen3_dir, tmp_path, monkeypatch):
    async with training_model(qwen3_dir) as model:
        result = await SFT(dataset=THREADS, model=model, run_dir=tmp_path / "run").run()
        with pytest.raises(SaveError, match=r"has what is not a model's: 'run\.sqlite"):
            await model.save(result.run_dir)
        assert query(result.run_dir, "SELECT 1 FROM metrics")
        monkeypatch.chdir(result.run_dir)
        with pytest.raises(SaveError, match="working directory"):
            await model.save(".")
        (tmp_path / "model").mkdir()
        monkeypatch.chdir(tmp_path)
        assert await model.save("model") == tmp_path / "model"
        await model.load("model")


async def test_a_callback_that_changes_the_working_directory_scatters_nothing(qwen3_dir, tmp_path, monkeypatch):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)

    class Wanders(CountingCallback):
        async def callback(self, current_percentage):
            os.chdir(elsewhere)
            return await super().callback(current_percentage)

    for run_dir in ("run", None):
        async with training_model(qwen3_dir) as model:
            callbacks = [Wanders(0.5), CheckpointCallback(model, "policy", 0.5, at_end=True)]
            sft = SFT(dataset=THREADS, model=model, samples_per_batch=2, run_dir=run_dir, callbacks=callbacks)
            result = await sft.run()
        assert not list(elsewhere.iterdir())
        assert result.run_dir.is_relative_to(here)
        assert {path.name for path in (result.run_dir / "checkpoints").iterdir()} == {"policy-1", "policy-2"}
        os.chdir(here)


async def test_a_checkpoint_with_files_of_others_is_not_deleted(qwen3_dir, tmp_path):
    class Evaluates(CountingCallback):
        async def callback(self, current_percentage):
            if (path := tmp_path / "run/checkpoints/policy-1").is_dir():
                (path / "results.json").write_text("{}")
            return await super().callback(current_percentage)

    async with training_model(qwen3_dir) as model:
        callbacks = [Evaluates(0.25), CheckpointCallback(model, "policy", 0.25, keep_last=1, at_end=True)]
        await SFT(
            dataset=THREADS, model=model, samples_per_batch=1, run_dir=tmp_path / "run", callbacks=callbacks
        ).run()
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["policy-1", "policy-4"]
    ((message,),) = query(tmp_path / "run", "SELECT message FROM events WHERE message LIKE '%results.json%'")
    assert "policy-1 is not replaced or deleted" in message


async def test_a_callback_that_deallocates_the_model_fails_alone(qwen3_dir, tmp_path):
    class Deallocates(CountingCallback):
        async def callback(self, current_percentage):
            await model.dealloc()

    async with training_model(qwen3_dir) as model:
        sft = SFT(
            dataset=THREADS, model=model, samples_per_batch=2, run_dir=tmp_path / "run", callbacks=[Deallocates(0.5)]
        )
        result = await sft.run()
        assert (result.num_steps, len(result.callback_failures)) == (2, 3)
        assert "ObserverError: dealloc was called from callback 'counting', and" in result.callback_failures[0].message
        weights_of(model)
    module = AutoModelForCausalLM.from_pretrained(qwen3_dir)
    model = live(module, qwen3_dir)
    async with CallbackRunner([Deallocates(0.5)], num_steps=1, run_dir=tmp_path / "live") as runner:
        await runner.after_step(1)
    assert len(runner.failures) == 2
    await model.dealloc()


async def test_many_models_are_loaded_at_once(qwen3_dir, gpt2_dir):
    builders = [ModelBuilder(qwen3_dir), ModelBuilder(gpt2_dir)] * 4
    models = await asyncio.gather(*[builder.spawn_inference("one of many") for builder in builders])
    scores = await asyncio.gather(*[model.logprobs(THREADS[0]) for model in models])
    assert scores == scores[:2] * 4
    for model in models:
        await model.dealloc()


@pytest.fixture
def changed(qwen3_dir, tmp_path):
    """A copy of a saved model that may be changed, and a function that changes its configuration."""
    path = shutil.copytree(qwen3_dir, tmp_path / "changed")

    def configure(**settings):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **settings}))

    return path, configure


async def test_quantized_weights_are_not_trained(qwen3_dir, changed):
    path, configure = changed
    configure(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ModelLoadError, match=r"are quantized \(bitsandbytes\) and cannot be trained"):
        await ModelBuilder(path).spawn_train("policy", max_batch_size=64)
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ModelLoadError, match="quantized"):
            await model.load(path)


async def test_a_directory_that_is_not_whole_is_refused_with_what_is_wrong(changed):
    path, _ = changed
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:50_000])
    with pytest.raises(ModelLoadError, match="file not fully covered"):
        await ModelBuilder(path).spawn_inference("cut off")
    weights.write_bytes(whole)
    for config in ("{}", "[", "[]"):
        (path / "adapter_config.json").write_text(config)
        with pytest.raises(ModelLoadError, match=r"adapter .* for its base model, which it does not name"):
            await ModelBuilder(path).spawn_inference("both")
    (path / "adapter_config.json").unlink()
    (path / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"has no tokenizer \(such as a tokenizer\.json"):
        await ModelBuilder(path).spawn_inference("mute")


async def test_weights_as_pickles_are_loaded_and_what_they_would_run_is_not(changed):
    path, _ = changed

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(path / "was-here"),)

    async with training_model(path) as model:
        expected = await model.logprobs(THREADS[0])
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    async with training_model(path) as model:
        assert await model.logprobs(THREADS[0]) == expected
    torch.save({"weights": Runs()}, path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="Weights only load failed"):
        await ModelBuilder(path).spawn_inference("evil")
    assert not (path / "was-here").exists()


async def test_weights_of_another_architecture_are_not_loaded_though_they_fit(qwen3_dir, tmp_path, changed):
    path, configure = changed
    configure(rope_parameters={"rope_type": "default", "rope_theta": 500.0}, attention_dropout=0.1)
    async with training_model(qwen3_dir) as model:
        before = weights_of(model)
        with pytest.raises(WeightsError, match=r"rope_parameters\.rope_theta is 500\.0 instead of 10000\.0"):
            await model.load(path)
        untied = save_model(
            tmp_path / "untied", Qwen3Config(**{**model_config(qwen3_dir), "tie_word_embeddings": False})
        )
        tensors = load_file(untied / "model.safetensors")
        with pytest.raises(WeightsError, match=r"are one tensor in the model and differ there"):
            await model.load(untied)
        assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())
        save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
                  untied / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
        await model.load(untied)
        assert torch.equal(weights_of(model)["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


def model_config(path):
    return json.loads((path / "config.json").read_text())
