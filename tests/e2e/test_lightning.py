"""Callbacks inside a real Lightning trainer."""

import json
import signal

import pytest
import torch
from support import CountingCallback, addition_threads, query, series
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant import EarlyStoppingCallback, ValidationLossCallback, live_model
from descant.errors import ConfigurationError

lightning = pytest.importorskip("pytorch_lightning")
from descant.integrations.lightning import add_callbacks  # noqa: E402

VALIDATION = addition_threads(2, offset=50)
pytestmark = pytest.mark.filterwarnings("ignore:.*")


class Module(lightning.LightningModule):
    def __init__(self, path):
        super().__init__()
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(path).train()
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def training_step(self, batch, batch_idx):
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(input_ids=batch, labels=batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Logged(lightning.pytorch.loggers.Logger if hasattr(lightning, "pytorch") else lightning.loggers.logger.Logger):
    """What the trainer's loggers are told."""

    name, version = "logged", 0

    def __init__(self):
        super().__init__()
        self.told = []

    def log_hyperparams(self, *_, **__):
        return

    def log_metrics(self, metrics, step=None):
        self.told.append((step, dict(metrics)))


def batches(module, count):
    texts = [module.tokenizer(f"{10 + i}+7={17 + i}").input_ids for i in range(count)]
    return torch.utils.data.DataLoader([torch.tensor(ids) for ids in texts], batch_size=1)


def fit(path, directory, callbacks=None, count=6, run_dir=None, others=(), added_options=None, **options):
    module, logger = Module(path), Logged()
    trainer = lightning.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=logger,
        default_root_dir=directory, callbacks=list(others), log_every_n_steps=2, enable_checkpointing=False,
        **{"max_epochs": 1, "devices": 1, **options},
    )  # fmt: skip
    added = None
    if callbacks is not None:
        added = add_callbacks(trainer, callbacks, run_dir=run_dir, **(added_options or {}))
    torch.manual_seed(1)
    try:
        trainer.fit(module, batches(module, count), batches(module, 2))
    finally:
        trainer.module, trainer.told = module, logger.told
        if added is not None:
            trainer.added = added
    return trainer


def losses(module):
    return [ValidationLossCallback(VALIDATION, live_model(module.model, module.tokenizer), 0.5), CountingCallback(0.5)]


def test_exact_neutral_and_logged(gpt2_dir, tmp_path):
    alone = fit(gpt2_dir, tmp_path)
    watched = fit(gpt2_dir, tmp_path, losses, run_dir=tmp_path / "run")
    for one, other in zip(alone.module.parameters(), watched.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not watched.added.failures
    assert list(series(tmp_path / "run", "validation/loss")) == [0, 3, 6]
    told = {step: metrics["validation/loss"] for step, metrics in watched.told if "validation/loss" in metrics}
    assert told == series(tmp_path / "run", "validation/loss")
    assert [each for each in watched.told if "validation/loss" not in each[1]] == alone.told
    assert list(series(tmp_path / "run", "training/train_loss")) == [2, 4, 6]
    assert list(series(tmp_path / "run", "training/val_loss")) == [6]
    assert query(tmp_path / "run", "SELECT count(*) FROM events WHERE kind = 'run_completed'") == [(1,)]
    config = {key: json.loads(value) for key, value in query(tmp_path / "run", "SELECT key, value FROM config")}
    assert (config["lr"], config["optimizer"]["name"], config["epochs"]) == (1e-2, "AdamW", 1)
    assert (config["module"], config["model"]["path"]) == ("Module", str(gpt2_dir))


def test_accumulation_counts_updates_and_late_results_are_logged_at_their_step(gpt2_dir, tmp_path):
    trainer = fit(
        gpt2_dir, tmp_path, losses, run_dir=tmp_path / "run", accumulate_grad_batches=2,
        added_options={"callback_mode": "overlap"},
    )  # fmt: skip
    expected = series(tmp_path / "run", "validation/loss")
    assert list(expected) == [0, 2, 3]
    told = {step: metrics["validation/loss"] for step, metrics in trainer.told if "validation/loss" in metrics}
    assert told == expected


class Asking(CountingCallback):
    async def callback(self, current_percentage):
        if self.run.step == 2:
            self.run.request_checkpoint()
        await super().callback(current_percentage)
        return {"value": -abs(self.run.step - 2)}


def asking(module):
    return [Asking(0.1), EarlyStoppingCallback("counting/value", patience=2, mode="max")]


def test_requests_reach_the_trainer(gpt2_dir, tmp_path):
    trainer = fit(gpt2_dir, tmp_path, asking, run_dir=tmp_path / "run", count=8)
    assert trainer.global_step == 4
    assert (tmp_path / "checkpoint-2.ckpt").exists()
    continued = fit(gpt2_dir, tmp_path, losses, run_dir=tmp_path / "run", count=8)  # another directory
    assert list(series(tmp_path / "run-2", "counting/calls")) == [0, 4, 8]
    assert continued.added.runner.run_dir == tmp_path / "run-2"


def test_a_training_without_an_end_is_refused_unless_it_is_planned(gpt2_dir, tmp_path):
    with pytest.raises(ConfigurationError, match=r"does not know how many steps .* num_steps="):
        fit(gpt2_dir, tmp_path, losses, run_dir=tmp_path / "run", max_epochs=-1, max_time="00:01:00:00")
    assert not (tmp_path / "run").exists()

    class Enough(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 3

    fit(
        gpt2_dir, tmp_path, losses, run_dir=tmp_path / "run", max_epochs=-1, others=[Enough()],
        added_options={"num_steps": 4},
    )  # fmt: skip
    assert list(series(tmp_path / "run", "validation/loss")) == [0, 2, 3]
    with pytest.raises(ConfigurationError, match="add_callbacks has no argument 'stict'"):
        fit(gpt2_dir, tmp_path, losses, added_options={"stict": True})


def test_failures_and_ctrl_c_close_the_run(gpt2_dir, tmp_path):
    class Raise(lightning.Callback):
        def __init__(self, raising):
            self.raising = raising

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 2:
                self.raising()

    def fail():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fit(gpt2_dir, tmp_path, losses, run_dir=tmp_path / "failed", others=[Raise(fail)])
    assert "out of luck" in query(tmp_path / "failed", "SELECT details FROM events WHERE kind = 'run_failed'")[0][0]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):  # which is what Lightning makes of it
        fit(
            gpt2_dir, tmp_path, losses, run_dir=tmp_path / "interrupted",
            others=[Raise(lambda: signal.raise_signal(signal.SIGINT))],
        )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert query(tmp_path / "interrupted", "SELECT step FROM events WHERE kind = 'run_interrupted'") == [(3,)]
    assert list(series(tmp_path / "interrupted", "validation/loss")) == [0, 3]
