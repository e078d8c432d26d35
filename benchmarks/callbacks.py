"""The overhead of callbacks by mode, and that of the evaluation of other trainers.

Every side trains the same model on the same samples in float32 with AdamW and evaluates the same validation set, before
the first step, at each 10 %, and after the last. An evaluation takes about 7 % of what training takes. Each side is a
process of its own with a set number of CPU threads; sides are measured in turn.
"""

import asyncio
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from models import SIZES, encoded, ragged_threads, saved_model
from sides import Side, serve

SIZE = os.environ.get("SIZE", "5.2M")
REPEATS = int(os.environ.get("REPEATS", "2"))
NUM_STEPS, BATCH = 40, 10
NUM_VALIDATED = int(0.21 * NUM_STEPS * BATCH)  # scoring is about a third of training
NUM_JUDGED, LATENCY_S = 100, 0.5
AUTO_STEPS = (10, 100)  # a run that is too short for a process of its own, and one that is not
STALL_SIZES = {
    "0.9M": SIZES["0.9M"],
    "5.2M": SIZES["5.2M"],
    "54M": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 24},
}
SIZES |= STALL_SIZES


def training_set(num_steps=NUM_STEPS):
    return ragged_threads(num_steps * BATCH)


def validation_set():
    return ragged_threads(NUM_VALIDATED)


# Sides


def descant(mode, path):
    """SFT with a validation loss in a mode, or with no callback (None)."""
    from descant import SFT, EvaluationPlacement, ModelBuilder, ValidationLossCallback

    async def run(num_steps):
        model = await ModelBuilder(path).spawn_train("policy", max_batch_size=4096)
        callbacks = [ValidationLossCallback(validation_set(), model, 0.1)] if mode else []
        ends = {}
        trainer = SFT(
            dataset=training_set(num_steps),
            model=model,
            lr=1e-4,
            samples_per_batch=BATCH,
            callbacks=callbacks,
            callback_mode=mode or "inline",
            callback_placement=EvaluationPlacement(num_threads=1),
            logger=lambda metrics: ends.setdefault(metrics["progress/step"], time.perf_counter()),
            run_dir=tempfile.mkdtemp(),
        )
        started_at = time.perf_counter()
        await trainer.run()
        ended_at = time.perf_counter()
        await model.dealloc()
        return ends[num_steps] - started_at, ended_at - started_at

    return lambda num_steps=NUM_STEPS: asyncio.run(run(num_steps))


def transformers(evaluation, path, trl=False):
    """A trainer of Transformers or TRL: with its own evaluation, with descant's callbacks in a mode, or with none."""
    import torch
    from datasets import Dataset
    from tiny_model import byte_tokenizer
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    from descant import EvaluationPlacement, ValidationLossCallback
    from descant.integrations.transformers import add_callbacks

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            self.last_step_at = time.perf_counter()

    def collate(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        pad = [longest - len(row["input_ids"]) for row in rows]
        return {
            "input_ids": torch.tensor([row["input_ids"] + [0] * n for row, n in zip(rows, pad, strict=True)]),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * n for row, n in zip(rows, pad, strict=True)]
            ),
            "labels": torch.tensor([row["labels"] + [-100] * n for row, n in zip(rows, pad, strict=True)]),
        }

    def run():
        rows = [Dataset.from_list(encoded(threads)) for threads in (training_set(), validation_set())]
        own = {"eval_strategy": "steps", "eval_steps": 0.1, "eval_on_start": True} if evaluation == "own" else {}
        settings = {
            "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": BATCH, "num_train_epochs": 1,
            "per_device_eval_batch_size": 4, "learning_rate": 1e-4, "report_to": "none", "save_strategy": "no",
            "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "logging_strategy": "no", **own,
        }  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(path)
        data = {"train_dataset": rows[0], "eval_dataset": rows[1] if own else None, "data_collator": collate}
        if trl:
            arguments = SFTConfig(
                **settings, max_length=None, bf16=False, gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            )  # fmt: skip
            trainer = SFTTrainer(model=model, args=arguments, processing_class=byte_tokenizer(), **data)
        else:
            trainer = Trainer(
                model=model, args=TrainingArguments(**settings), processing_class=byte_tokenizer(), **data
            )
        clock = Clock()
        trainer.add_callback(clock)
        if evaluation in ("inline", "background"):
            add_callbacks(
                trainer,
                lambda model: [ValidationLossCallback(validation_set(), model, 0.1)],
                run_dir=tempfile.mkdtemp(),
                callback_mode=evaluation,
                callback_placement=EvaluationPlacement(num_threads=1),
            )
        started_at = time.perf_counter()
        trainer.train()
        return clock.last_step_at - started_at, time.perf_counter() - started_at

    return run


SIDES = {
    "descant alone": (lambda path: descant(None, path), 1),
    "descant background": (lambda path: descant("background", path), 1),
    "descant auto": (lambda path: descant("auto", path), 1),
    "descant inline": (lambda path: descant("inline", path), 1),
    "descant alone, 2 threads": (lambda path: descant(None, path), 2),
    "descant inline, 2 threads": (lambda path: descant("inline", path), 2),
    "Trainer alone": (lambda path: transformers(None, path), 1),
    "Trainer, its own evaluation": (lambda path: transformers("own", path), 1),
    "Trainer, descant background": (lambda path: transformers("background", path), 1),
    "SFTTrainer alone": (lambda path: transformers(None, path, trl=True), 1),
    "SFTTrainer, its own evaluation": (lambda path: transformers("own", path, trl=True), 1),
}


def wall_times():
    """Seconds until the last step and until the end, against the same training without evaluation."""
    path = saved_model(SIZE)
    seconds = {name: [] for name in SIDES}
    for _ in range(REPEATS):
        for name, (_, num_threads) in SIDES.items():
            side = Side(__file__, name, SIZE, path, num_threads=num_threads)
            seconds[name].append(side.measure(""))
            side.close()
    print(f"\n| {SIZE} parameters, 11 evaluations | threads | until the last step | ratio | until the end | ratio |")
    print("|---|---|---|---|---|---|")
    for name, (_, num_threads) in SIDES.items():
        alone = "descant alone" if name.startswith("descant") else f"{name.split(',')[0].removesuffix(' alone')} alone"
        cells = []
        for which in (0, 1):
            mine, its = (statistics.median(run[which] for run in seconds[side]) for side in (name, alone))
            cells += [f"{mine:.1f} s", f"{mine / its:.2f} ×"]
        threads = "1 + 1" if "background" in name else num_threads
        print(f"| {name} | {threads} | {' | '.join(cells)} |", flush=True)


def stall(size, path):
    """Seconds of each stall, and of one copy of as many bytes, for two sizes of the validation set."""
    import torch

    from descant import SFT, EvaluationPlacement, ModelBuilder, ValidationLossCallback

    async def run(num_validated):
        model = await ModelBuilder(path).spawn_train("policy", max_batch_size=4096)
        short = ragged_threads(num_validated, 8, 16)
        stalls = []
        await SFT(
            dataset=ragged_threads(16 if size == "54M" else 200, 8, 16),
            model=model,
            samples_per_batch=1,
            callbacks=[
                ValidationLossCallback(
                    short, model, 0.2, mode="background", when_busy="replace", timeout_s=20.0, at_end=False
                )
            ],
            logger=lambda metrics: stalls.append(metrics.get("callbacks/loss/stall_s")),
            callback_placement=EvaluationPlacement(num_threads=1),
            run_dir=tempfile.mkdtemp(),
        ).run()
        await model.dealloc()
        return [seconds for seconds in stalls if seconds is not None]

    def measure():
        from safetensors.torch import load_file

        num_bytes = sum(tensor.nbytes for tensor in load_file(Path(path) / "model.safetensors").values())
        source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
        copies = []
        for _ in range(20):
            started_at = time.perf_counter()
            target.copy_(source)
            copies.append(time.perf_counter() - started_at)
        stalls = {num: statistics.median(asyncio.run(run(num))) for num in (100, 10_000)}
        return num_bytes, statistics.median(copies), stalls[100], stalls[10_000]

    return measure


def stalls():
    print("\n| parameters | weights | one copy in memory | stall, 100 samples | 10,000 samples | limit |")
    print("|---|---|---|---|---|---|")
    for size in STALL_SIZES:
        side = Side(__file__, "stall", size, saved_model(size), num_threads=1)
        num_bytes, copy_s, few_s, many_s = side.measure("")
        side.close()
        cells = [f"{1e3 * seconds:.2f} ms" for seconds in (copy_s, few_s, many_s, 2 * copy_s + 1e-3)]
        print(f"| {size} | {num_bytes / 1e6:.0f} MB | {' | '.join(cells)} |", flush=True)


def judged(mode, path):
    """Seconds of a run that is graded by a judge that takes half a second; "generation" is graded at once."""
    from descant import SFT, BaseGrader, Grade, GraderEvalCallback, ModelBuilder

    class Judge(BaseGrader):
        async def grade(self, sample):
            await asyncio.sleep(0 if mode == "generation" else LATENCY_S)
            return Grade(1.0, self.grader_key)

    async def run():
        model = await ModelBuilder(path).spawn_train("policy", max_batch_size=4096)
        evaluation = GraderEvalCallback(
            ragged_threads(NUM_JUDGED, 8, 32), model, Judge("judge"), 0.1, max_gen_len=8,
            mode="overlap" if mode == "overlap" else "inline",
        )  # fmt: skip
        ends = {}
        trainer = SFT(
            dataset=ragged_threads(20 * 32),
            model=model,
            samples_per_batch=32,
            callbacks=[] if mode == "alone" else [evaluation],
            logger=lambda metrics: ends.setdefault(metrics["progress/step"], time.perf_counter()),
            run_dir=tempfile.mkdtemp(),
        )
        started_at = time.perf_counter()
        await trainer.run()
        await model.dealloc()
        return ends[20] - started_at

    return lambda: asyncio.run(run())


def judges():
    path = saved_model("0.9M")
    modes = ("alone", "generation", "overlap", "inline")
    seconds = {mode: [] for mode in modes}
    for _ in range(REPEATS):
        for mode in modes:
            side = Side(__file__, f"judged {mode}", "0.9M", path, num_threads=1)
            seconds[mode].append(side.measure(""))
            side.close()
    median = {mode: statistics.median(values) for mode, values in seconds.items()}
    head = f"0.9M parameters, {NUM_JUDGED} answers, a judge that takes {LATENCY_S} s"
    print(f"\n| {head} | until the last step | to the second |")
    print("|---|---|---|")
    for mode, what in {
        "alone": "no evaluation",
        "generation": "graded at once, inline",
        "overlap": "judge, overlap",
        "inline": "judge, inline",
    }.items():
        print(f"| {what} | {median[mode]:.1f} s | {median[mode] / median['generation']:.2f} × |", flush=True)


def auto():
    """Seconds of a short and of a long run: the mode that is chosen against each that could be."""
    path = saved_model(SIZE)
    print(f"\n| {SIZE} parameters | {' | '.join(f'{steps} steps | to inline' for steps in AUTO_STEPS)} |")
    print(f"|---|{'---|---|' * len(AUTO_STEPS)}")
    seconds = {}
    for mode in ("alone", "inline", "auto", "background"):
        side = Side(__file__, f"steps {mode}", SIZE, path, num_threads=1)
        for steps in AUTO_STEPS:
            seconds[mode, steps] = statistics.median(side.measure(str(steps)) for _ in range(REPEATS))
        side.close()
        cells = (
            f"{seconds[mode, steps]:.1f} s | "
            + (f"{seconds[mode, steps] / seconds['inline', steps]:.2f} ×" if mode != "alone" else "")
            for steps in AUTO_STEPS
        )
        print(f"| {mode} | {' | '.join(cells)} |", flush=True)


def start():
    """Seconds until a process can evaluate, and of these for which training waits."""
    from descant import EvaluationPlacement, ModelBuilder
    from descant.models.weight_buffers import WeightBuffers

    async def measure(path):
        model = await ModelBuilder(path).spawn_train("policy", max_batch_size=4096)
        buffers = WeightBuffers(model, EvaluationPlacement(num_threads=1))
        started_at = time.perf_counter()
        await buffers.start()
        begun_at = time.perf_counter()
        await buffers.ready()
        ready_at = time.perf_counter()
        await buffers.close()
        await model.dealloc()
        return begun_at - started_at, ready_at - started_at

    print("\n| parameters | training waits | the process is ready after |")
    print("|---|---|---|")
    for size in STALL_SIZES:
        runs = [asyncio.run(measure(saved_model(size))) for _ in range(REPEATS)]
        waits, ready = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"| {size} | {waits:.2f} s | {ready:.1f} s |", flush=True)


# Callbacks that are not due


def idle():
    """Microseconds per step of ten callbacks that are not due, above a loop with none."""
    measured = {
        "descant: `CallbackRunner.after_step`": idle_descant,
        "Transformers: `on_step_begin`, `on_step_end`": idle_transformers,
        "Lightning: `on_train_batch_start`, `on_train_batch_end`": idle_lightning,
    }
    print("\n| ten callbacks that are not due | of a step, above none | a step with none |")
    print("|---|---|---|")
    for name, measure in measured.items():
        try:
            rounds = [(measure(10), measure(0)) for _ in range(9)]
        except ImportError as error:
            print(f"| {name} | not measured: {error} | |")
            continue
        ten, none = (min(values) for values in zip(*rounds, strict=True))
        print(f"| {name} | {ten - none:.2f} µs | {none:.2f} µs |", flush=True)


def idle_descant(num_callbacks, num_steps=5_000):
    from descant import CallbackRunner, RecipeCallback

    class Nothing(RecipeCallback):
        async def callback(self, current_percentage):
            return {}

    async def run():
        callbacks = [Nothing(1, name=f"c{number}") for number in range(num_callbacks)]
        async with CallbackRunner(callbacks, num_steps=2 * num_steps, run_dir=tempfile.mkdtemp()) as runner:
            await runner.after_step(5)  # with the forecast
            started_at = time.perf_counter()
            for step in range(6, num_steps + 6):
                await runner.after_step(step)
            return 1e6 * (time.perf_counter() - started_at) / num_steps

    with contextlib.redirect_stderr(io.StringIO()):
        return asyncio.run(run())


def idle_transformers(num_callbacks, num_steps=20_000):
    from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import CallbackHandler

    kinds = [type(f"Nothing{number}", (TrainerCallback,), {}) for number in range(num_callbacks)]
    handler = CallbackHandler([DefaultFlowCallback(), *(kind() for kind in kinds)], None, None, None, None)
    arguments, state, control = TrainingArguments(use_cpu=True, report_to="none"), TrainerState(), TrainerControl()
    state.max_steps = 10 * num_steps
    started_at = time.perf_counter()
    for _ in range(num_steps):
        handler.on_step_begin(arguments, state, control)
        handler.on_step_end(arguments, state, control)
    return 1e6 * (time.perf_counter() - started_at) / num_steps


def idle_lightning(num_callbacks, num_steps=20_000):
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.trainer import call

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Callback() for _ in range(num_callbacks)],
    )  # fmt: skip
    trainer.strategy._lightning_module = LightningModule()
    started_at = time.perf_counter()
    for step in range(num_steps):
        call._call_callback_hooks(trainer, "on_train_batch_start", None, step)
        call._call_callback_hooks(trainer, "on_train_batch_end", None, None, step)
    return 1e6 * (time.perf_counter() - started_at) / num_steps


def side():
    """In a side's process."""
    name, size, path = (sys.argv[sys.argv.index(option) + 1] for option in ("--side", "--size", "--model"))
    if name == "stall":
        work = stall(size, path)
    elif name.startswith("judged "):
        work = judged(name.removeprefix("judged "), path)
    elif name.startswith("steps "):
        mode = name.removeprefix("steps ")
        run = descant(None if mode == "alone" else mode, path)
        serve(lambda num_steps: run(int(num_steps))[1])
        return
    else:
        work = SIDES[name][0](path)
    serve(lambda _: work())


PARTS = {"start": start, "auto": auto, "wall": wall_times, "stall": stalls, "judge": judges, "idle": idle}


def main():
    if "--side" in sys.argv:
        side()
        return
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
