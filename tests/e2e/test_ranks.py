"""Two processes that train one model together (Gloo, on the CPU): they stay in step; sharded weights are refused."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from support import CountingCallback, addition_threads, query, series
from test_lightning import asking, fit
from test_transformers import plain_trainer, weights_of
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from descant import CallbackRunner, EarlyStoppingCallback, ValidationLossCallback, live_model
from descant.errors import ConfigurationError
from descant.integrations import ranks
from descant.integrations.transformers import add_callbacks

VALIDATION = addition_threads(2, offset=50)


class Deciding(CountingCallback):
    """Asks for a checkpoint at step 2, and gets no better after that."""

    async def callback(self, current_percentage):
        if self.run.step == 2:
            self.run.request_checkpoint()
        await super().callback(current_percentage)
        return {"best_at_two": -abs(self.run.step - 2)}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == self.step


def refusal(make):
    try:
        make()
    except ConfigurationError as error:
        return str(error)
    return "accepted"


def in_a_trainer(model_dir, directory):
    options = {"ddp_backend": "gloo", "dataloader_pin_memory": False, "max_steps": 6}
    alone = plain_trainer(model_dir, directory / "alone", **options)
    alone.add_callback(StopAt(4))
    alone.train()
    watched = plain_trainer(model_dir, directory / "watched", **options)
    added = add_callbacks(
        watched,
        lambda model: [
            Deciding(0.1),
            ValidationLossCallback(VALIDATION, model, 0.5),
            EarlyStoppingCallback("counting/best_at_two", patience=2, mode="max"),
        ],
        run_dir=directory / "run",
    )
    watched.train()
    before, after = weights_of(alone), weights_of(watched)
    return {
        "step": watched.state.global_step,
        "is_neutral": all(torch.equal(before[name], after[name]) for name in before),
        "failures": [failure.message for failure in added.failures],
    }


def in_a_loop(model_dir, directory):
    module = AutoModelForCausalLM.from_pretrained(model_dir)
    parallel = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    ids = torch.arange(8).unsqueeze(0) + dist.get_rank()
    callbacks = [
        ValidationLossCallback(VALIDATION, live_model(parallel, AutoTokenizer.from_pretrained(model_dir)), 0.5)
    ]
    callbacks += [CountingCallback(0.1), EarlyStoppingCallback("counting/calls", patience=2, mode="min")]
    runner, stop = CallbackRunner(callbacks, num_steps=6, run_dir=directory / "loop"), torch.zeros(1)
    with runner.synchronous() if dist.get_rank() == 0 else contextlib.nullcontext() as run:
        for step in range(1, 7):  # as docs/integrations.md has it
            parallel(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if run:
                run.after_step(step)
                stop[0] = run.should_stop
            dist.broadcast(stop, 0)
            if stop:
                break
    return {"step": step}


def in_lightning(model_dir, directory):
    trainer = fit(model_dir, directory / "lightning", asking, count=16, run_dir=directory / "lightning-run", devices=2)
    return {"step": trainer.global_step, "sum": sum(p.double().sum().item() for p in trainer.module.parameters())}


def sharded(model_dir, directory):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)

    def module():
        return AutoModelForCausalLM.from_pretrained(model_dir)

    def begin(model):
        runner = CallbackRunner([ValidationLossCallback(VALIDATION, model)], num_steps=2, run_dir=directory / "never")
        with runner.synchronous():
            pass

    sharded, later, by_flat, later_flat = (module() for _ in range(4))
    fully_shard(sharded)
    trainer = plain_trainer(model_dir, directory / "out", ddp_backend="gloo")
    model, model_flat = live_model(later, tokenizer), live_model(later_flat, tokenizer)
    fully_shard(later)
    FullyShardedDataParallel(later_flat, device_id=torch.device("cpu"), use_orig_params=True)
    trainer.model = sharded
    return {
        "live_model": refusal(lambda: live_model(sharded, tokenizer)),
        "add_callbacks": refusal(lambda: add_callbacks(trainer, [CountingCallback()])),
        "flat": refusal(
            lambda: live_model(FullyShardedDataParallel(by_flat, device_id=torch.device("cpu")), tokenizer)
        ),
        "later": refusal(lambda: begin(model)),
        "later, flat": refusal(lambda: begin(model_flat)),
    }


def added_in_the_first_only(*_):
    ranks.MEETING = timedelta(seconds=1)
    said = refusal(ranks.Ranks) if dist.get_rank() == 0 else ""
    dist.barrier()
    return {"said": said}


def main(model_dir, directory):
    dist.init_process_group("gloo")
    parts = (in_a_trainer, in_a_loop, in_lightning, sharded, added_in_the_first_only)
    found = {part.__name__: part(model_dir, directory) for part in parts}
    (directory / f"found-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(gpt2_dir, tmp_path_factory):
    """What each of two processes has found, and where."""
    directory = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        env = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # fmt: skip
        output = (directory / f"output-{rank}.txt").open("w")
        command = [sys.executable, __file__, str(gpt2_dir), str(directory)]
        processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(300) == 0, (directory / f"output-{rank}.txt").read_text()[-4000:]
    finally:
        for process in processes:
            process.kill()
    return directory, [json.loads((directory / f"found-{rank}.json").read_text()) for rank in range(2)]


def test_the_processes_of_a_trainer_end_and_save_at_the_same_step(found):
    directory, both = found
    for rank in both:
        assert rank["in_a_trainer"] == {"step": 4, "is_neutral": True, "failures": []}
    assert (directory / "watched" / "checkpoint-2" / "model.safetensors").exists()
    assert list(series(directory / "run", "counting/best_at_two")) == [0, 1, 2, 3, 4]
    assert query(directory / "run", "SELECT count(*) FROM events WHERE kind = 'run_completed'") == [(0,)]


def test_a_loop_of_ones_own_passes_the_decision_on(found):
    directory, both = found
    assert [rank["in_a_loop"]["step"] for rank in both] == [2, 2]
    assert list(series(directory / "loop", "counting/calls")) == [0, 1, 2]


def test_the_processes_of_a_lightning_trainer_do_too(found):
    directory, both = found
    assert both[0]["in_lightning"] == both[1]["in_lightning"]
    assert both[0]["in_lightning"]["step"] == 4
    assert (directory / "lightning" / "checkpoint-2.ckpt").exists()
    assert list(series(directory / "lightning-run", "counting/value")) == [0, 1, 2, 3, 4]


def test_sharded_weights_are_refused_also_when_they_were_sharded_later(found):
    directory, both = found
    for rank in both:
        assert len(rank["sharded"]) == 5
        for case, said in rank["sharded"].items():
            assert said.startswith("the weights of "), (case, said)
            assert "are sharded over processes" in said
            assert "DistributedDataParallel" in said
    assert not (directory / "never").exists()


def test_callbacks_that_are_added_in_one_process_only(found):
    _, both = found
    assert (
        "were not added in those of rank [1]: add them in every process" in both[0]["added_in_the_first_only"]["said"]
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
