"""RunState: where a run is, and what has been measured so far."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from descant.callbacks.base import RecipeCallback, RunView
from descant.metrics import Metric
from descant.progress import Progress
from descant.runner.requests import Requests
from descant.seeds import derive_seed


@dataclass(slots=True)
class RunState:
    """What callbacks see of a run, as ``RunView``.

    Attributes:
        num_steps: planned steps.
        step: completed steps.
        seed: the run's.
        requests: what callbacks ask of the loop.
        run_dir: the directory of the run, once it is open.
        progress: ``step`` over ``num_steps``, with the seconds since the run started.
        started_at: when it did (``time.monotonic()``).
        training_metrics: what the loop has measured at this step.
        evaluations: what callbacks have returned at this step, training waiting for them, under their full keys.
        num_failed: how many samples are not in them, as in ``RunView``.
        late_evaluations: steps and numbers of the asynchronous calls, in the order in which they completed.
        known_keys: the keys of everything that callbacks have returned so far.
        last_call: the step of the latest call of each callback.
        messages: what callbacks have said that is not recorded yet: kind of event, source, step, message, details.
    """

    num_steps: int
    step: int
    seed: int
    requests: Requests
    run_dir: Path = Path()
    progress: Progress = field(init=False)
    started_at: float = field(default_factory=time.monotonic)
    training_metrics: Mapping[str, Metric] = field(default_factory=dict)
    evaluations: dict[str, Metric] = field(default_factory=dict)
    num_failed: dict[str, float] = field(default_factory=dict)
    late_evaluations: list[tuple[int, dict[str, Metric]]] = field(default_factory=list)
    known_keys: set[str] = field(default_factory=set)
    last_call: dict[str, int] = field(default_factory=dict)
    messages: list[tuple[str, str, int, str, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.progress = Progress(self.step, self.num_steps)

    def advance(self, step: int) -> None:
        """So many steps are completed now."""
        self.step = step
        self.progress = Progress(min(step, self.num_steps), self.num_steps, time.monotonic() - self.started_at)
        self.evaluations, self.num_failed = {}, {}

    def warn(self, source: str, step: int, message: str, details: object = None) -> None:
        """Warn; it is recorded, as text, as soon as the event loop allows it."""
        if isinstance(details, BaseException):
            details = "".join(traceback.format_exception(details))
        text = details if isinstance(details, str | None) else repr(details)
        self.messages.append(("callback_warning", source, step, str(message), text))

    def note(self, source: str, step: int, message: str) -> None:
        """Say what is no reason to worry; it is recorded likewise."""
        self.messages.append(("callback_note", source, step, str(message), None))

    def view(self, callback: RecipeCallback, step: int | None = None) -> RunView:
        """The run as it is now; what is recorded and drawn by it belongs to ``step``, by default this one."""
        step = self.step if step is None else step
        return RunView(
            step=self.step,
            num_steps=self.num_steps,
            progress=self.progress.fraction,
            elapsed_s=time.monotonic() - self.started_at,
            metrics=dict(self.training_metrics),
            evaluations=dict(self.evaluations),
            num_failed=dict(self.num_failed),
            known_keys=frozenset(self.known_keys),
            run_dir=self.run_dir,
            seed=derive_seed(self.seed, callback.name, step),
            warn=partial(self.warn, callback.name, step),
            note=partial(self.note, callback.name, step),
            request_stop=partial(self.requests.stop, callback.name),
            request_checkpoint=partial(self.requests.checkpoint, callback.name),
            as_measured=lambda model: model,
        )
