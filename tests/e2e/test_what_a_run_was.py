"""What a run says of itself in its log: in descant's trainer, in others, in bare loops; found again by the commands."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import addition_threads, training_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from typer.testing import CliRunner

from descant import (
    SFT,
    CallbackRunner,
    CombinedGrader,
    ContainsGrader,
    CosineSchedulerWithoutWarmup,
    ExactMatchGrader,
    GraderEvalCallback,
    ValidationLossCallback,
    live_model,
    load_threads,
)
from descant.cli.app import app
from descant.engine.identity import identity, weights_hash
from descant.integrations.transformers import add_callbacks
from descant.runlog.run_reader import RunReader

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config_of(run_dir):
    with RunReader(run_dir) as reader:
        return reader.config


def write_threads(path, threads):
    path.write_text("\n".join(json.dumps({"prompt": t.last_content(), "completion": "7"}) for t in threads))
    return path


async def test_a_run_says_model_data_schedule_and_graders(qwen3_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "hub" / "snapshots" / COMMIT  # as the hub's client keeps a model
    cached.parent.mkdir(parents=True)
    cached.symlink_to(qwen3_dir, target_is_directory=True)
    train = load_threads(write_threads(tmp_path / "train.jsonl", addition_threads(4)))
    validation = load_threads(write_threads(tmp_path / "validation.jsonl", addition_threads(2, offset=60)))
    grader = CombinedGrader(
        "both", [ExactMatchGrader(), ContainsGrader(["a", "b"], grader_key="found")], weights=[1, 3]
    )
    async with training_model(cached, max_batch_size=300) as model:
        await SFT(
            dataset=train,
            model=model,
            lr_scheduler=CosineSchedulerWithoutWarmup(2e-3, 5),
            samples_per_batch=2,
            run_dir="runs/first",
            callbacks=[GraderEvalCallback(validation, model, grader, frequency=0.5, max_gen_len=2)],
        ).run()
        await SFT(dataset=train[:2], model=model, lr_scheduler=lambda _: 1e-3, run_dir="runs/second").run()
    first, second = config_of("runs/first"), config_of("runs/second")
    assert first["lr"] == 2e-3  # and not the default of an argument that is not used
    assert first["lr_scheduler"] == {"name": "CosineSchedulerWithoutWarmup", "lr": 2e-3, "decay_factor": 5}
    assert "lr_scheduler=lambda _: 1e-3" in second["lr_scheduler"]["source"]
    known = {"name": "policy", "path": str(cached), "revision": COMMIT, "precision": "float32", "max_batch_size": 300}
    assert first["model"].items() >= {**known, "class": "Qwen3ForCausalLM", "gradient_checkpointing": False}.items()
    assert first["model"]["weights_hash"] == identity(AutoModelForCausalLM.from_pretrained(qwen3_dir))["weights_hash"]
    assert second["model"]["weights_hash"] != first["model"]["weights_hash"]  # those that the second one begins with
    (source,) = first["dataset"]["sources"]
    assert (source["path"], source["num_bytes"]) == (str(tmp_path / "train.jsonl"), Path("train.jsonl").stat().st_size)
    assert second["dataset"]["sources"][0]["sha256"] == source["sha256"]
    assert second["dataset"]["content_hash"] != first["dataset"]["content_hash"]
    (callback,) = first["callbacks"]
    assert (callback["frequency"], callback["validation_set"]["num_samples"]) == (0.5, 2)
    assert callback["validation_set"]["sources"][0]["path"].endswith("validation.jsonl")
    assert callback["grader"]["weights"] == [1, 3]
    assert callback["grader"]["graders"][1]["text"] == ["a", "b"]
    assert [(each["name"], each["class"]) for each in callback["grader"]["graders"]] == [
        ("exact_match", "ExactMatchGrader"),
        ("found", "ContainsGrader"),
    ]
    for wanted, name in {"lr=2e-3": "first", "lr=0.0010": "second", f"revision={COMMIT}": "first"}.items():
        found = CliRunner().invoke(app, ["runs", "--json", "--filter", wanted])
        assert name in [run["name"] for run in json.loads(found.stdout)["runs"]], wanted


async def test_a_bare_loop_says_what_it_was_told_and_which_model_it_is(gpt2_dir, tmp_path):
    module, threads = AutoModelForCausalLM.from_pretrained(gpt2_dir), addition_threads(2)
    model = live_model(module, AutoTokenizer.from_pretrained(gpt2_dir))
    settings = {
        "lr": torch.tensor(0.5).numpy()[()],
        "lr_scheduler": CosineSchedulerWithoutWarmup(0.5),
        "betas": (0.9, 1),
    }
    callbacks = [ValidationLossCallback(threads, model, frequency=1.0)]
    runner = CallbackRunner(callbacks, num_steps=1, config=settings, training_set=addition_threads(3), run_dir=tmp_path)
    with runner.synchronous() as run:
        run.after_step(1)
    config = config_of(tmp_path)
    assert (config["lr"], config["betas"], config["lr_scheduler"]["lr"]) == (0.5, [0.9, 1], 0.5)
    assert config["model"].items() >= {"name": "policy", "path": str(gpt2_dir), "dtype": "float32"}.items()
    assert (config["dataset"]["num_samples"], "sources" in config["dataset"]) == (3, False)
    assert "models" not in config


def sft_trainer(path, directory, optimizers=(None, None), **options):
    rows = [{"prompt": f"{number}?", "completion": "7"} for number in range(8)]
    arguments = {"max_steps": 2, "learning_rate": 3e-4, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    arguments |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "bf16": False, "seed": 5}
    return SFTTrainer(
        model=str(path),
        args=SFTConfig(str(directory), **arguments, **options),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=3, target_modules=["c_attn"], task_type="CAUSAL_LM"),
        optimizers=optimizers,
    )


def test_a_trainer_of_trl_says_model_adapter_schedule_and_arguments(gpt2_dir, tmp_path):
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}, "warmup_steps": 1}
    trainer = sft_trainer(gpt2_dir, tmp_path / "out", **schedule, hub_token="hf_abcdefghijklmnopqrst")
    add_callbacks(
        trainer,
        lambda model: [ValidationLossCallback(addition_threads(2), model, frequency=1.0)],
        run_dir=tmp_path / "run",
    )
    trainer.train()
    config = config_of(tmp_path / "run")
    assert config["lr"] == 3e-4
    assert config["lr_scheduler"] == {"name": "cosine_with_min_lr", "warmup_steps": 1, "min_lr": 1e-5}
    assert (config["samples_per_batch"], config["seed"], config["optimizer"]["name"]) == (4, 5, "AdamW")
    assert "autocast" not in config
    assert (config["arguments"]["max_length"], config["arguments"]["bf16"]) == (1024, False)
    assert "hf_abcdefghijklmnopqrst" not in json.dumps(config)
    assert config["dataset"]["num_samples"] == 8
    assert config["dataset"]["fingerprint"] == trainer.train_dataset._fingerprint
    model = config["model"]
    assert model.items() >= {"name": "policy", "path": str(gpt2_dir), "class": "GPT2LMHeadModel"}.items()
    assert model["weights_hash"] == identity(AutoModelForCausalLM.from_pretrained(gpt2_dir))["weights_hash"]
    adapter = model["adapters"]["default"]
    assert (adapter["peft_type"], adapter["r"], adapter["target_modules"]) == ("LORA", 3, ["c_attn"])
    assert adapter["weights_hash"] != model["weights_hash"]


def test_the_optimizer_that_a_trainer_was_given_is_the_one_that_is_said(gpt2_dir, tmp_path):
    trainer = sft_trainer(gpt2_dir, tmp_path / "out")
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.25, momentum=0.5)
    trainer.optimizer, trainer.lr_scheduler = optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.5)
    add_callbacks(trainer, [], run_dir=tmp_path / "run")  # no callback looks at the model
    trainer.train()
    config = config_of(tmp_path / "run")
    assert (config["lr"], config["optimizer"]["name"], config["optimizer"]["momentum"]) == (0.25, "SGD", 0.5)
    assert config["lr_scheduler"].items() >= {"name": "StepLR", "step_size": 7, "gamma": 0.5}.items()
    assert config["model"]["path"] == str(gpt2_dir)
    assert config["model"]["adapters"]["default"]["r"] == 3


def test_the_commit_of_a_hub_model_is_the_one_in_the_cache(gpt2_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    module = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    module.config._name_or_path = "org/tiny"
    assert "revision" not in identity(module)
    repository = tmp_path / "models--org--tiny"
    for commit in (COMMIT, COMMIT[::-1]):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").touch()
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        assert identity(module, is_of_main=True)["revision"] == commit
        assert identity(module).get("revision") == (commit if commit == COMMIT else None)  # it may be either then


# The hash of weights


def test_the_hash_is_of_weights_and_not_of_files_formats_or_adapters(gpt2_dir, tmp_path):
    module = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    found = identity(module)["weights_hash"]
    module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert identity(AutoModelForCausalLM.from_pretrained(tmp_path / "shards"))["weights_hash"] == found
    adapted = get_peft_model(module, LoraConfig(target_modules=["c_attn"], modules_to_save=["lm_head"]))
    described = identity(adapted.get_base_model())
    assert described["weights_hash"] == found
    before = described["adapters"]["default"]["weights_hash"]
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "lora_B" in n).add_(1)
    assert identity(adapted.get_base_model())["adapters"]["default"]["weights_hash"] != before
    half = {name: tensor.bfloat16() for name, tensor in load_file(gpt2_dir / "model.safetensors").items()}
    assert weights_hash(half) == weights_hash({name: tensor.float() for name, tensor in half.items()})
    save_file({name: tensor.clone() for name, tensor in half.items()}, tmp_path / "half.safetensors")
    assert weights_hash(load_file(tmp_path / "half.safetensors")) == weights_hash(half)


@pytest.mark.parametrize(
    "change", [lambda t: t + 1e-3, lambda t: t.T, lambda t: t[:-1], lambda t: torch.cat([t[:-1], t[-1:] * 2])]
)
def test_other_weights_have_another_hash(change):
    tensor = torch.randn(100, 200)
    assert weights_hash({"a": change(tensor)}) != weights_hash({"a": tensor}) != weights_hash({"b": tensor})


def test_odd_tensors():
    odd = {
        "empty": torch.empty(0),
        "scalar": torch.tensor(2.0),
        "integers": torch.arange(9),
        "flags": torch.ones(5000) > 0,
    }
    assert weights_hash(odd) == weights_hash(dict(reversed(odd.items())))
    transposed = torch.randn(300, 200).T
    assert weights_hash({"a": transposed}) == weights_hash({"a": transposed.contiguous()})
    assert weights_hash({"a": torch.empty(3, device="meta")}) is None
