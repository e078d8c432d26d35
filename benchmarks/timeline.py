"""The picture docs/images/modes.svg: what training waits for in each mode, as measured in a run.

One CPU thread trains and one evaluates. Each run has one evaluation of a validation set, graded by a judge that answers
after half a second.
"""

import asyncio
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from models import ragged_threads, saved_model

from descant import SFT, BaseGrader, EvaluationPlacement, Grade, GraderEvalCallback, ModelBuilder, RecipeCallback, at
from descant import every_steps as every_n

MODES = ("inline", "overlap", "background")
NUM_STEPS = 24
SCALE = 200  # pixels per second
ROW, LEFT, TOP = 78, 104, 56  # pixels
LEGEND = {
    "step": "a step of training",
    "stall": "training waits",
    "evaluation": "the evaluation",
}
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:13px;fill:#222}.mode{font-weight:600}.page{fill:#fff}"
    ".in{font-size:11px;fill:#fff;text-anchor:middle}.axis{font-size:11px;text-anchor:middle;fill:#666}"
    ".tick{stroke:#e4e6ea}.step{fill:#c9ced6}.stall{fill:#d1495b}.evaluation{fill:#3b7dd8}"
    "@media (prefers-color-scheme:dark){text{fill:#e6e8eb}.page{fill:#0d1117}.axis{fill:#9aa3ad}.tick{stroke:#262c34}"
    ".in{fill:#fff}.step{fill:#59626e}.stall{fill:#d65a6a}.evaluation{fill:#3f7fd6}}"
)


class Judge(BaseGrader):
    """Answers after half a second."""

    async def grade(self, sample):
        """Grade everything with 1, late."""
        await asyncio.sleep(0.5)
        return Grade(1.0, self.grader_key)


class Watched(GraderEvalCallback):
    """Notes when the model works and when the judge does."""

    async def measure(self, model):
        """Generate; note when that began and ended."""
        self.spans = [("model", time.perf_counter())]
        completions = await super().measure(model)
        self.spans.append(("judge", time.perf_counter()))
        return completions

    async def report(self, measurement):
        """Grade; note when that ended."""
        metrics = await super().report(measurement)
        self.spans.append(("done", time.perf_counter()))
        self.is_warm.set()
        return metrics


class Clock(RecipeCallback):
    """Notes when each step ends. At step 1 it waits for the first evaluation, so that the process has started."""

    async def callback(self, current_percentage):
        """Note the time."""
        if self.run.step == 1:
            await self.watched.is_warm.wait()
        self.ends = [*getattr(self, "ends", []), (self.run.step, time.perf_counter())]
        return {}


async def run(mode, path):
    model = await ModelBuilder(path).spawn_train("policy", max_batch_size=4096)
    options = {"max_gen_len": 64, "at_end": False, "mode": mode}
    watched = Watched(ragged_threads(48, 8, 32), model, Judge("judge"), at(0.25), **options)
    watched.is_warm = asyncio.Event()
    before, after = Clock(every_n(1), name="before"), Clock(every_n(1), name="after")
    before.watched = after.watched = watched
    await SFT(
        dataset=ragged_threads(8 * NUM_STEPS, 64, 128),
        model=model,
        samples_per_batch=8,
        callbacks=[before, watched, after],
        run_dir=tempfile.mkdtemp(),
        callback_placement=EvaluationPlacement(num_threads=1),
    ).run()
    await model.dealloc()
    return before.ends, after.ends, watched.spans


def box(start, end, row, height, kind, text=""):
    x, width = LEFT + SCALE * start, max(1.0, SCALE * (end - start) - 1)
    label = f'<text x="{x + width / 2:.1f}" y="{row + height - 5}" class="in">{text}</text>' if text else ""
    return f'<rect x="{x:.1f}" y="{row}" width="{width:.1f}" height="{height}" rx="2" class="{kind}"/>{label}'


def draw(runs):
    parts, longest = [], 0.0
    for number, (mode, (before, after, spans)) in enumerate(runs.items()):
        top = TOP + ROW * number
        first = after[2][1]  # the run begins to be steady after a few steps
        parts.append(f'<text x="8" y="{top + 17}" class="mode">{mode}</text>')
        measured_at = spans[0][1]
        for (step, started_at), (_, ended_at) in zip(after[2:-1], before[3:], strict=True):
            parts.append(box(started_at - first, ended_at - first, top, 24, "step"))
            stalled_until = after[step + 1][1]
            if ended_at <= measured_at + 0.05 and stalled_until - ended_at > 0.0005 and stalled_until >= measured_at:
                parts.append(box(ended_at - first, stalled_until - first, top, 24, "stall"))
        for (what, started_at), (_, ended_at) in pairwise(spans):
            parts.append(box(started_at - first, ended_at - first, top + 28, 18, "evaluation", what))
        longest = max(longest, before[-1][1] - first, spans[-1][1] - first)
    width, height = LEFT + SCALE * longest + 20, TOP + ROW * len(runs) + 24
    ticks = [
        f'<line x1="{x}" y1="{TOP - 10}" x2="{x}" y2="{height - 26}" class="tick"/>'
        f'<text x="{x}" y="{height - 10}" class="axis">{second} s</text>'
        for second, x in enumerate(range(LEFT, int(LEFT + SCALE * longest) + 1, SCALE))
    ]
    legend, x = [], LEFT
    for kind, text in LEGEND.items():
        legend.append(f'<rect x="{x}" y="12" width="16" height="14" rx="2" class="{kind}"/>')
        legend.append(f'<text x="{x + 22}" y="24">{text}</text>')
        x += 52 + 7 * len(text)
    content = "".join(
        [f'<style>{STYLE}</style><rect width="100%" height="100%" class="page"/>', *legend, *ticks, *parts]
    )
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{content}</svg>\n'


def main():
    path = saved_model("0.9M")
    runs = {mode: asyncio.run(run(mode, path)) for mode in MODES}
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "images" / "modes.svg"
    target.write_text(draw(runs))
    print(target)


if __name__ == "__main__":
    main()
