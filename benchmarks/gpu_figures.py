"""The figures on a GPU, as parts that ``gpu.py`` asks for: each answers with rows of what descant and a peer measured.

The model has half a billion parameters, those of Qwen2-0.5B but random. Peers are measured in the same process, one
after another, on the same sequences and in the same precision. A warm-up comes first and is not counted.
"""

import asyncio
import gc
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from generation import generated_by_transformers
from models import encoded, padded, ragged_threads, saved
from sides import serve_parts
from training import sft_trainer
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config
from validation_loss import evaluating_trainer

from descant import SFT, EvaluationPlacement, ModelBuilder, RecipeCallback, ValidationLossCallback, every_steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AUTOCAST = {"device_type": DEVICE, "dtype": torch.bfloat16}


@dataclass(frozen=True)
class Scale:
    """The model, and how much is measured."""

    model: dict
    vocabulary: int
    longest: int
    """Tokens of a sequence; the shortest has an eighth of it."""
    batch: int
    micro_batch: int
    """Sequences of a step of training, and of one pass of the peers; descant's passes have as many tokens."""
    num_steps: int
    num_watched_steps: int
    """Of the training that is evaluated in the background."""
    num_validated: int
    num_prompts: int
    num_new: int
    mean_new: int
    """New tokens of a completion, at the most; and on average where lengths differ."""
    repeats: int


SCALES = {
    "dry": Scale(
        model={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        vocabulary=512, longest=32, batch=4, micro_batch=2, num_steps=2, num_watched_steps=5, num_validated=8,
        num_prompts=8, num_new=8, mean_new=4, repeats=1,
    ),
    "0.5B": Scale(
        model={"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
        vocabulary=151_936, longest=1024, batch=32, micro_batch=8, num_steps=6, num_watched_steps=40, num_validated=256,
        num_prompts=128, num_new=128, mean_new=32, repeats=2,
    ),
}  # fmt: skip


class Clock(RecipeCallback):
    """When each step has ended. At the first it waits for the first evaluation, with which a process has started."""

    def __init__(self, is_warm):
        super().__init__(every_steps(1), "clock", at_start=False)
        self.is_warm, self.ends = is_warm, {}

    async def callback(self, current_percentage):
        if self.run.step == 1:
            await self.is_warm.wait()
        self.ends[self.run.step] = time.perf_counter()
        return {}


class Evaluation(ValidationLossCallback):
    """Says when it has measured."""

    async def report(self, measurement):
        metrics = await super().report(measurement)
        self.is_warm.set()
        return metrics


class Figures:
    """The parts, on a model of a scale that is saved in a folder."""

    def __init__(self, size, folder):
        self.scale = scale = SCALES[size]
        self.threads = ragged_threads(scale.num_steps * scale.batch, scale.longest // 8, scale.longest)
        self.rows = encoded(self.threads)
        self.stops = range(1, max(2, scale.vocabulary // scale.mean_new))
        self.path = str(Path(folder) / "model")
        if not Path(self.path).exists():  # from a process of this that was killed
            config = Qwen2Config(
                **scale.model, num_key_value_heads=2, max_position_embeddings=4 * scale.longest,
                tie_word_embeddings=True,
            )  # fmt: skip
            saved(Path(folder) / "unfinished", config, scale.vocabulary)
            GenerationConfig(eos_token_id=list(self.stops)).save_pretrained(Path(folder) / "unfinished")
            (Path(folder) / "unfinished").rename(self.path)

    def spawn_train(self):
        tokens = self.scale.micro_batch * self.scale.longest
        return ModelBuilder(self.path, precision="mixed").spawn_train("policy", max_batch_size=tokens)

    def spawn_inference(self):
        return ModelBuilder(self.path, precision="bfloat16").spawn_inference("policy")

    def load(self, dtype):
        """The model for a peer."""
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype).to(DEVICE)

    def measured(self, work, prepare=None):
        """Median seconds of ``work()``, and its peak of memory in bytes, without what others before it held.

        With ``prepare``, of ``work(prepare())``, whose preparation is not timed.
        """
        seconds = []
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(1 + self.scale.repeats):
            prepared = () if prepare is None else (prepare(),)
            started_at = time.perf_counter()
            work(*prepared)
            synchronize()
            seconds.append(time.perf_counter() - started_at)
        return statistics.median(seconds[1:]), peak_bytes()

    # Parts

    def sft(self):
        """Steps of training in mixed precision, against a bare torch loop and TRL."""
        num_tokens = sum(len(row["input_ids"]) for row in self.rows)
        ours, our_peak = self.sft_by_descant()
        for name, peer in {"bare torch loop": self.sft_by_bare_loop, "TRL's `SFTTrainer`": self.sft_by_trl}.items():
            (theirs, peak), note = attempt(peer)
            yield row("SFT, tokens/s", num_tokens / ours, name, theirs and num_tokens / theirs, note)
            yield row("SFT, peak memory, GB", our_peak / 1e9, name, peak and peak / 1e9, note)

    def sft_by_descant(self):
        loop = asyncio.new_event_loop()
        model = loop.run_until_complete(self.spawn_train())

        def work():
            trainer = SFT(
                dataset=self.threads, model=model, lr=1e-4, samples_per_batch=self.scale.batch,
                run_dir=tempfile.mkdtemp(),
            )  # fmt: skip
            assert loop.run_until_complete(trainer.run()).num_steps == self.scale.num_steps

        try:
            return self.measured(work)
        finally:
            loop.run_until_complete(model.dealloc())
            loop.close()

    def sft_by_bare_loop(self):
        model = self.load(torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)

        def work():
            for batch in cut(self.rows, self.scale.batch):
                num_trained = sum(label >= 0 for one in batch for label in one["labels"])
                for micro_batch in cut(batch, self.scale.micro_batch):
                    tensors = {name: tensor.to(DEVICE) for name, tensor in padded(micro_batch).items()}
                    with torch.autocast(**AUTOCAST):
                        loss = model(**tensors, use_cache=False, num_items_in_batch=num_trained).loss
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

        return self.measured(work)

    def sft_by_trl(self):
        model = self.load(torch.float32)

        def prepare():
            return sft_trainer(
                model, self.rows, per_device_train_batch_size=self.scale.micro_batch,
                gradient_accumulation_steps=self.scale.batch // self.scale.micro_batch,
                bf16=DEVICE == "cuda", use_cpu=DEVICE == "cpu", dataloader_pin_memory=DEVICE == "cuda",
            )  # fmt: skip

        def work(trainer):
            assert trainer.train().global_step == self.scale.num_steps

        return self.measured(work, prepare)

    def generation(self):
        """Sampling at temperature 1 in bfloat16, against Transformers' ``generate``: tokens up to each row's end."""
        loop, num_new = asyncio.new_event_loop(), self.scale.num_new
        threads = [
            thread.without_completion() for thread in ragged_threads(self.scale.num_prompts, 64, 4 * self.scale.longest)
        ]
        model = loop.run_until_complete(self.spawn_inference())
        prompts = loop.run_until_complete(model.tokenize_prompts_many(threads))
        ids = [prompt.token_ids for prompt in prompts]
        equal = model.temperature(1.0).max_gen_len(num_new).min_gen_len(num_new)
        cases = {
            f"every row to {num_new}": (equal, ()),
            f"mean {self.scale.mean_new}, at most {num_new}": (equal.min_gen_len(0), self.stops),
        }

        def by_descant(view):
            found = loop.run_until_complete(view.generate_tokens_many(prompts))
            counts.append(
                sum(len(one.token_ids) - len(prompt.token_ids) for one, prompt in zip(found, prompts, strict=True))
            )

        ours, counts = {}, []
        for name, (view, _) in cases.items():
            seconds, _ = self.measured(lambda view=view: by_descant(view))
            ours[name] = counts[-1] / seconds
        loop.run_until_complete(model.dealloc())
        loop.close()
        peer = self.load(torch.bfloat16).eval()
        for name, (_, stops) in cases.items():

            def by_transformers(stops=stops):
                counts.append(generated_by_transformers(peer, ids, num_new, stops))

            (seconds, _), note = attempt(lambda work=by_transformers: self.measured(work))
            theirs = seconds and counts[-1] / seconds
            yield row(f"generation ({name} new tokens), tokens/s", ours[name], "Transformers `generate`", theirs, note)

    def validation_loss(self):
        """A validation set in bfloat16, against ``Trainer.evaluate`` with its best batch size."""
        threads = ragged_threads(self.scale.num_validated, self.scale.longest // 8, self.scale.longest)
        rows = encoded(threads)
        num_tokens = sum(len(one["input_ids"]) for one in rows)
        loop = asyncio.new_event_loop()
        model = loop.run_until_complete(self.spawn_inference())
        callback = ValidationLossCallback(threads, model)
        ours, our_peak = self.measured(lambda: loop.run_until_complete(callback.callback(0.0)))
        loop.run_until_complete(model.dealloc())
        loop.close()
        peer = self.load(torch.bfloat16)
        found = []
        for batch_size in (self.scale.micro_batch, 2 * self.scale.micro_batch):

            def by_trainer(batch_size=batch_size):
                on_cpu = DEVICE == "cpu"
                trainer = evaluating_trainer(peer, rows, batch_size, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu)
                return self.measured(trainer.evaluate)

            (seconds, peak), note = attempt(by_trainer)
            found.append((seconds or float("inf"), peak, note, f"`Trainer.evaluate`, batch size {batch_size}"))
        theirs, peak, note, name = min(found, key=lambda one: one[0])
        yield row("validation loss, tokens/s", num_tokens / ours, name, peak and num_tokens / theirs, note)
        yield row("validation loss, peak memory, GB", our_peak / 1e9, name, peak and peak / 1e9, note)

    def background(self):
        """Evaluations in the background, in a second process on the same GPU: what training waits for, and takes."""
        alone_s, _ = asyncio.run(self.watched_training(None))
        watched_s, stalls = asyncio.run(self.watched_training("background"))
        yield row("a step with evaluations in the background, s", watched_s, "the same step without", alone_s)
        num_bytes = 4 * sum(parameter.numel() for parameter in self.load(torch.float32).parameters())
        source = torch.ones(num_bytes, dtype=torch.uint8, device=DEVICE)
        target = torch.ones(num_bytes, dtype=torch.uint8)
        copy_s, _ = self.measured(lambda: target.copy_(source))
        limit = f"limit: two copies of {num_bytes / 1e9:.2f} GB to the host and 1 ms"
        yield row("stall of an evaluation in the background, s", statistics.median(stalls), limit, 2 * copy_s + 1e-3)

    async def watched_training(self, mode):
        """Seconds of a step once the evaluating process is up, and of each stall."""
        scale = self.scale
        num_samples = scale.num_watched_steps * scale.micro_batch
        model = await self.spawn_train()
        clock, stalls = Clock(asyncio.Event()), []
        evaluation = Evaluation(self.threads[: scale.micro_batch * 2], model, 0.1, mode=mode)
        evaluation.is_warm = clock.is_warm
        if mode is None:
            clock.is_warm.set()
        await SFT(
            dataset=ragged_threads(num_samples, scale.longest // 8, scale.longest),
            model=model,
            lr=1e-4,
            samples_per_batch=scale.micro_batch,
            callbacks=[clock] if mode is None else [evaluation, clock],
            callback_placement=EvaluationPlacement(),
            contamination="ignore",
            logger=lambda metrics: stalls.append(metrics.get("callbacks/loss/stall_s")),
            run_dir=tempfile.mkdtemp(),
        ).run()
        await model.dealloc()
        last = scale.num_watched_steps
        return (clock.ends[last] - clock.ends[1]) / (last - 1), [stall for stall in stalls if stall is not None]


def row(what, value, against, reference, note=None):
    return {"what": what, "value": value, "against": against, "reference": reference, "note": note}


def attempt(work):
    """What a peer measured, and None; or twice None, and why there is nothing."""
    try:
        return work(), None
    except ImportError as error:
        return (None, None), f"{error.name} not installed" if error.name else str(error).strip().splitlines()[0]
    except torch.OutOfMemoryError:
        return (None, None), "out of memory"


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def cut(items, size):
    """The items in lists of so many."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def peak_bytes():
    """Bytes of the GPU at the most since the last reset; in a dry run those of the process since its start."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve_parts(Figures)
