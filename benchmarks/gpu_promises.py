"""The promises on a GPU, as parts that ``gpu.py`` asks for: each answers with checks of (name, passed, details).

Where bits are compared, attention is "eager" and torch's deterministic algorithms are on: the backward pass of fused
attention adds in no fixed order, so that no two trainings need be the same bits, with callbacks or without.
"""

import asyncio
import gc
import platform
import random
import tempfile
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import torch
import transformers
from models import ragged_threads, saved
from safetensors.torch import load_file
from sides import serve_parts
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, Qwen3Config

from descant import (
    SFT,
    BaseGrader,
    CallbackRunner,
    EvaluationPlacement,
    GenerateSamplesCallback,
    GraderEvalCallback,
    ModelBuilder,
    RecipeCallback,
    ValidationLossCallback,
    live_model,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5
"""By how much a metric may differ, relatively, where another stream or process computes it in float32."""
LOSS_BANDS = {"mixed": (0.02, 0.05), "bfloat16": (0.02, 0.1)}
"""By how much a validation loss may differ from that in float32, relatively: before and after training."""
MEMORY_SHARES = (0.8, 0.7, 0.6)
"""Of what a training takes, how much it gets; the first that makes it run out of memory counts."""


@dataclass(frozen=True)
class Scale:
    """How large models and runs are."""

    width: int
    num_layers: int
    num_steps: int
    batch: int
    longest: int
    row_length: int
    """Of each of the ``batch`` sequences of the training that runs out of memory."""


SCALES = {
    "dry": Scale(width=32, num_layers=2, num_steps=4, batch=4, longest=48, row_length=32),
    "0.5B": Scale(width=512, num_layers=8, num_steps=12, batch=32, longest=256, row_length=512),
}


@dataclass
class Run:
    """A training: its weights, and the metrics of training and validation by (step, key)."""

    weights: dict
    failures: list
    metrics: dict = field(default_factory=dict)

    def validation(self):
        return {key: value for key, value in self.metrics.items() if key[1].startswith("validation/")}

    def losses(self):
        """The validation loss before the first step and after the last."""
        values = [value for (_, key), value in sorted(self.metrics.items()) if key == "validation/loss"]
        return values[0], values[-1]


class Vandal(RecipeCallback):
    """Reseeds every generator, draws from them, generates, and fails every other time."""

    def __init__(self, model, prompts):
        super().__init__(0.1, "vandal")
        self.model, self.prompts, self.num_calls = model, prompts, 0

    async def callback(self, current_percentage):
        self.num_calls += 1
        random.seed(self.num_calls)
        torch.manual_seed(self.num_calls)
        torch.rand(1000, device=DEVICE)
        await self.model.max_gen_len(4).temperature(1.0).generate_many(self.prompts[:2])
        if self.num_calls % 2:
            raise RuntimeError("on purpose")
        return {"draw": random.random()}


async def checksum(thread):
    """A grade that changes with every character of a completion."""
    return zlib.crc32(thread.last_content().encode()) % 1000


class Promises:
    """The parts, on models of a scale that are saved in a folder."""

    def __init__(self, size, folder):
        self.scale, self.folder = SCALES[size], Path(folder)
        self.training_set = ragged_threads(self.scale.num_steps * self.scale.batch, 8, self.scale.longest)
        self.validation_set = ragged_threads(8, 8, self.scale.longest)
        width, num_layers = self.scale.width, self.scale.num_layers
        self.with_dropout = saved(
            self.folder / "gpt2",
            GPT2Config(n_embd=width, n_layer=num_layers, n_head=4, n_positions=1024, resid_pdrop=0.1, attn_pdrop=0.1),
        )
        self.without_dropout = saved(
            self.folder / "qwen3",
            Qwen3Config(
                hidden_size=width, intermediate_size=3 * width, num_hidden_layers=num_layers, num_attention_heads=4,
                num_key_value_heads=2, head_dim=width // 4, max_position_embeddings=1024, tie_word_embeddings=True,
            ),
        )  # fmt: skip
        torch.use_deterministic_algorithms(True, warn_only=True)

    def built_ins(self, model, frequency=0.25):
        """A validation loss, graded answers and samples."""
        grader = BaseGrader.from_function("checksum", checksum)
        return [
            ValidationLossCallback(self.validation_set, model, frequency),
            GraderEvalCallback(self.validation_set, model, grader, frequency, max_gen_len=8),
            GenerateSamplesCallback(self.validation_set, model, frequency, max_gen_len=8),
        ]

    def vandal(self, model):
        """One callback that disturbs all that training might draw from."""
        return [Vandal(model, self.validation_set)]

    def train(self, make_callbacks=lambda model: [], path=None, dataset=None, builder=None, **options):
        """A training of the model with dropout in float32, unless it is said otherwise."""

        async def run():
            budget = self.scale.batch * self.scale.row_length
            settings = {"precision": "float32", "attn_implementation": "eager", **(builder or {})}
            model = await ModelBuilder(path or self.with_dropout, **settings).spawn_train("policy", budget)
            trained = Run({}, [])

            def log(metrics):
                numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
                trained.metrics |= {(metrics["progress/step"], key): value for key, value in numbers.items()}

            try:
                trainer = SFT(
                    dataset=dataset or self.training_set,
                    model=model,
                    **{"lr": 1e-3, "samples_per_batch": self.scale.batch, **options},
                    callbacks=make_callbacks(model),
                    logger=log,
                    contamination="ignore",
                    run_dir=tempfile.mkdtemp(dir=self.folder),
                )
                trained.failures = (await trainer.run()).callback_failures
                saved_at = await model.save(tempfile.mkdtemp(dir=self.folder) + "/model")
                trained.weights = load_file(saved_at / "model.safetensors")
            finally:
                await model.dealloc()
            return trained

        try:
            return asyncio.run(run())
        finally:
            gc.collect()
            if DEVICE == "cuda":
                torch.cuda.empty_cache()

    # Parts

    def machine(self):
        """What this runs on."""
        yield {
            "device": torch.cuda.get_device_name(0) if DEVICE == "cuda" else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }

    def neutral(self):
        """Trained weights are bit-identical with callbacks and without."""
        alone = self.train()
        yield ("control: two trainings without callbacks", *same_bits(self.train(), alone))
        yield ("control: another seed trains other weights", not same_bits(self.train(seed=1), alone)[0], "")
        watched = self.train(lambda model: self.built_ins(model, 0.01))
        yield ("built-ins at every step", *same_bits(watched, alone))
        yield "none of them fails", not watched.failures, "".join(str(failure) for failure in watched.failures[:1])
        watched = self.train(self.vandal)
        yield ("one that reseeds every generator and fails", *same_bits(watched, alone))
        yield "it does fail", bool(watched.failures), f"{len(watched.failures)} times"
        alone, watched = self.bare_loop(), self.bare_loop(lambda model: self.built_ins(model) + self.vandal(model))
        yield ("both in a bare loop that draws from the global generators", *same_bits(watched, alone))
        torch.use_deterministic_algorithms(False)
        try:
            is_same = same_bits(*(self.train(builder={"attn_implementation": "sdpa"}) for _ in range(2)))[0]
        finally:
            torch.use_deterministic_algorithms(True, warn_only=True)
        details = f"two trainings are {'the same' if is_same else 'not the same'} bits, which is not promised"
        yield "with torch's default algorithms and attention", None, details

    def bare_loop(self, make_callbacks=lambda model: []):
        """A plain loop with dropout from the global generator, in which the callbacks run."""

        async def run():
            torch.manual_seed(0)
            module = AutoModelForCausalLM.from_pretrained(
                self.with_dropout, dtype=torch.float32, attn_implementation="eager"
            )
            module = module.to(DEVICE).train()
            tokenizer = AutoTokenizer.from_pretrained(self.with_dropout)
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
            ids = torch.randint(tokenizer.vocab_size, (4, 32), device=DEVICE)
            model = live_model(module, tokenizer)
            callbacks, num_steps = make_callbacks(model), self.scale.num_steps
            run_dir = tempfile.mkdtemp(dir=self.folder)
            async with CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir) as runner:
                for step in range(1, num_steps + 1):
                    module(input_ids=ids, labels=ids).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    await runner.after_step(step)
            weights = {name: tensor.detach().cpu().clone() for name, tensor in module.named_parameters()}
            await model.dealloc()
            return Run(weights, runner.failures)

        return asyncio.run(run())

    def modes(self):
        """The modes give equal metrics at equal steps, and the same trained weights."""
        alone, inline = self.train(), self.train(self.built_ins)
        yield ("inline: trained weights", *same_bits(inline, alone))
        places = {
            "overlap": (0.0, {"callback_mode": "overlap"}),
            "background, a thread": (TOLERANCE, background("thread")),
            "background, a second process": (TOLERANCE, background("process")),
        }
        for name, (tolerance, options) in places.items():
            run = self.train(self.built_ins, **options)
            yield (f"{name}: trained weights", *same_bits(run, alone))
            is_close, details = close(run.validation(), inline.validation(), tolerance)
            yield f"{name}: metrics", is_close and not run.failures, details

    def out_of_memory(self):
        """Budgets are halved once, with one warning, and results are equal up to rounding."""
        length, batch = self.scale.row_length, self.scale.batch
        rows = ragged_threads(3 * batch, length, length)
        settings = {"attn_implementation": "sdpa"}
        options = {"path": self.without_dropout, "dataset": rows, "lr": 1e-5, "builder": settings}

        def make(model):
            return [ValidationLossCallback(self.validation_set, model, 1.0, at_start=False)]

        base = memory()
        expected = self.train(make, **options)
        needed = memory("peak") - base
        for share in MEMORY_SHARES if DEVICE == "cuda" else (0.6,):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with capped(base + share * needed) if DEVICE == "cuda" else room_for(int(share * batch * length)):
                    run = self.train(make, **options)
            said = [str(warning.message) for warning in caught if "out of memory" in str(warning.message)]
            if said:
                break
        yield "one warning", len(said) == 1, said[0] if said else f"none with {min(MEMORY_SHARES):.0%} of the memory"
        keys = ("training/loss", "training/grad_norm", "validation/loss")
        picked = [{at: value for at, value in one.metrics.items() if at[1] in keys} for one in (run, expected)]
        yield ("losses and gradient norms", *close(*picked, 1e-4))

    def precision(self):
        """ "mixed" and "bfloat16" train, with a validation loss close to that in float32."""

        def train(precision):
            settings = {"precision": precision, "attn_implementation": "sdpa"}
            return self.train(self.built_ins, self.without_dropout, builder=settings)

        exact = train("float32").losses()
        for precision, bands in LOSS_BANDS.items():
            losses = train(precision).losses()
            gaps = [abs(found - wanted) / wanted for found, wanted in zip(losses, exact, strict=True)]
            is_close = all(gap <= band for gap, band in zip(gaps, bands, strict=True))
            details = (
                f"loss {losses[0]:.4f} → {losses[1]:.4f}, in float32 {exact[0]:.4f} → {exact[1]:.4f} (may differ by "
                f"{bands[0]:.0%} and {bands[1]:.0%})"
            )
            yield precision, is_close and all(map(isfinite, losses)) and losses[1] < losses[0], details

    def gradient_checkpointing(self):
        """The same bits with and without, dropout included."""
        peaks, runs = [], []
        for is_on in (False, True):
            base = memory()
            runs.append(self.train(builder={"gradient_checkpointing": is_on}))
            peaks.append(memory("peak") - base)
        is_same, details = same_bits(*runs)
        yield (
            "trained weights",
            is_same,
            f"{details}; peak memory {peaks[1] / 1e9:.2f} GB, {peaks[0] / 1e9:.2f} without",
        )


def background(where):
    placement = EvaluationPlacement(where, num_threads=1)  # of the CPU, as for training in a dry run
    return {"callback_mode": "background", "callback_placement": placement}


def same_bits(run, other):
    """Whether the weights of two trainings are the same bits, and in words by how much they differ."""
    different = [name for name, value in other.weights.items() if not torch.equal(run.weights[name], value)]
    if not different:
        return True, "the same bits"
    gap = max(float((run.weights[name] - other.weights[name]).abs().max()) for name in different)
    return False, f"{len(different)} of {len(other.weights)} parameters differ, by up to {gap:.2g}"


def close(found, expected, tolerance):
    """Whether metrics have the same steps and differ by no more than the tolerance, and in words by how much."""
    compared = {at: value for at, value in expected.items() if not at[1].endswith("_s")}
    if missing := sorted(compared.keys() ^ {at for at in found if not at[1].endswith("_s")}):
        return False, f"only in one of the two: {missing[0]}, {len(missing)} in all"
    if not compared:
        return False, "there is nothing to compare"
    gaps = {at: abs(found[at] - value) / max(abs(value), 1e-12) for at, value in compared.items()}
    worst = max(gaps, key=gaps.get)
    details = f"{len(gaps)} metrics, " + (
        "the same bits" if gaps[worst] == 0 else f"{worst} differs most, by {gaps[worst]:.1g} (at most {tolerance:g})"
    )
    return gaps[worst] <= tolerance, details


def memory(which="now"):
    """Bytes of the GPU that tensors take, now or at the most since it was last asked for "now"."""
    if DEVICE != "cuda":
        return 0
    if which == "peak":
        return torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


@contextmanager
def capped(num_bytes):
    """This process gets so much of the GPU: what it allocates beyond fails, as on a full one."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def room_for(num_tokens):
    """The same on a CPU: forward passes of more padded tokens raise what CUDA raises."""

    def look(module, inputs):
        if isinstance(module, nn.Embedding) and inputs[0].numel() > num_tokens:
            raise torch.OutOfMemoryError("tried to allocate 1 EiB")

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    serve_parts(Promises)
