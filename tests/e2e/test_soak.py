"""A long run of background evaluations in which everything happens that can: none is lost, nothing stays behind, and
training is the same to the bit. ``make soak`` makes a thousand of them."""

import asyncio
import gc
import os
import random
import signal
import subprocess
import threading
from collections import Counter

from support import addition_threads, query, series, training_model, weights_of

from descant import SFT, EvaluationPlacement, ModelCallback
from descant.seeds import derive_seed

NUM_EVALUATIONS = int(os.environ.get("SOAK_EVALUATIONS", "45"))
THREADS = addition_threads(4)
KINDS = {"good": 60, "slow": 15, "fails": 8, "fails_later": 8, "hangs": 5, "hangs_later": 2, "kills": 2}


class Eventful(ModelCallback):
    """Does at each step what its dice say, which are thrown before the run."""

    def __init__(self, model, number, num_steps, when_busy):
        super().__init__(model, f"1/{num_steps}", f"eventful_{number}", timeout_s=5.0, when_busy=when_busy)
        dice = random.Random(derive_seed(0, self.name))
        self.kinds = dice.choices(list(KINDS), list(KINDS.values()), k=num_steps + 1)
        self.delays = [dice.random() * 0.02 for _ in range(num_steps + 1)]
        self.generates = dice.random() < 0.5

    async def measure(self, model):
        kind = self.kinds[self.run.step]
        if kind == "slow":
            await asyncio.sleep(self.delays[self.run.step])
        elif kind == "fails":
            raise ValueError("on purpose")
        elif kind == "hangs":
            await asyncio.wait_for(asyncio.Event().wait(), 0.02)
        elif kind == "kills":
            self.kinds[self.run.step] = "good"  # when it is made once more
            os.kill(model._worker.pid, signal.SIGKILL)
        if self.run.step % 2:
            return len(await model.max_gen_len(3).generate_many(THREADS))
        return len(await model.logprobs_many(THREADS))

    async def report(self, measurement):
        kind = self.kinds[self.run.step]
        if kind == "slow":
            await asyncio.sleep(self.delays[self.run.step])
        elif kind == "fails_later":
            raise ValueError("on purpose")
        elif kind == "hangs_later":
            await asyncio.wait_for(asyncio.Event().wait(), 0.02)
        return {"value": measurement}


async def run(path, run_dir, num_steps, make_callbacks):
    async with training_model(path) as model:
        callbacks = make_callbacks(model)
        result = await SFT(
            dataset=addition_threads(num_steps),
            model=model,
            lr=1e-3,
            samples_per_batch=1,
            callbacks=callbacks,
            callback_mode="background",
            callback_placement=EvaluationPlacement(num_threads=1),
            run_dir=run_dir,
        ).run()
        return result, weights_of(model), callbacks


async def test_every_evaluation_is_accounted_for(gpt2_dir, tmp_path):
    num_steps = NUM_EVALUATIONS // 3 - 1
    _, without, _ = await run(gpt2_dir, tmp_path / "without", num_steps, lambda model: [])
    before = left_behind()
    result, weights, callbacks = await run(
        gpt2_dir,
        tmp_path / "run",
        num_steps,
        lambda model: [Eventful(model, n, num_steps, busy) for n, busy in enumerate(("wait", "skip", "replace"))],
    )
    different = [name for name, tensor in without.items() if not tensor.equal(weights[name])]
    assert not different

    failed = Counter((failure.callback, failure.step) for failure in result.callback_failures)
    totals = Counter()
    for callback in callbacks:
        landed = set(series(tmp_path / "run", f"{callback.name}/value"))
        events = query(tmp_path / "run", "SELECT kind, step FROM events WHERE source = ?", callback.name)
        gone = {kind: {step for k, step in events if k == f"callback_{kind}"} for kind in ("failed", "replaced")}
        num_skipped = sum(kind == "callback_skipped" for kind, _ in events)
        assert not landed & gone["failed"]
        assert not landed & gone["replaced"]
        assert gone["failed"] == {step for name, step in failed if name == callback.name}
        num_accounted = len(landed) + len(gone["failed"]) + len(gone["replaced"]) + num_skipped
        assert num_accounted == num_steps + 1, (callback.name, len(landed), gone, num_skipped)
        must_fail = {step for step, kind in enumerate(callback.kinds) if kind not in ("good", "slow")}
        assert not landed & must_fail
        totals += Counter(landed=len(landed), skipped=num_skipped, **{k: len(steps) for k, steps in gone.items()})
    assert set(failed.values()) == {1}
    print(f"{3 * (num_steps + 1)} evaluations: {dict(totals)}")
    after = left_behind()
    assert after["processes"] == before["processes"]
    assert after["files"] <= before["files"]
    assert after["threads"] <= before["threads"]


def left_behind():
    gc.collect()
    command = ["ps", "--no-headers", "-o", "pid,stat,args", "--ppid", str(os.getpid())]
    children = subprocess.run(command, capture_output=True, text=True)
    return {
        "processes": [line for line in children.stdout.splitlines() if "placements.child" in line],
        "files": len(os.listdir("/proc/self/fd")),
        "threads": sum(thread.name.startswith("descant") for thread in threading.enumerate()),
    }
