"""Notifiers: receive the progress of a job and of its stages."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from descant.arguments import check_text
from descant.errors import ConfigurationError

_TENTHS = 10


class JobNotifier(ABC):
    """Receives the stages of a job, their progress, and its end. Override the abstract methods.

    Args:
        job_id: the name of the job.
    """

    def __init__(self, job_id: str = "local") -> None:
        self.job_id = job_id
        self.stages: list[str] = []
        """The names of the stages, in order."""

    def register_stages(self, stages: Sequence[str]) -> None:
        """Announce the stages of the job in their order, after those that are known.

        Raises:
            ConfigurationError: a string in place of a list of names.
        """
        if isinstance(stages, str):
            raise ConfigurationError(f"register_stages({stages!r}) needs a list of names, as [{stages!r}]")
        self.stages += [stage for stage in dict.fromkeys(stages) if stage not in self.stages]

    def stage_notifier(self, name: str) -> StageNotifier:
        """The notifier of one stage, for ``stage_notifier=`` of a trainer."""
        self.register_stages([name])
        return StageNotifier(name, self)

    @abstractmethod
    def report_progress(
        self,
        stage: str,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """The progress of a stage; ``StageNotifier`` calls this with numbers that it has checked."""

    @abstractmethod
    def report_error(self, error: str) -> None:
        """The job has failed; ``error`` says why."""

    @abstractmethod
    def complete(self) -> None:
        """The job has ended without an error."""


class StageNotifier:
    """Reports the progress of one stage to its job."""

    def __init__(self, stage_name: str, job_notifier: JobNotifier) -> None:
        check_text("stage_name", stage_name)
        if not isinstance(job_notifier, JobNotifier):
            raise ConfigurationError(
                f"job_notifier={job_notifier!r} is a {type(job_notifier).__name__}; a JobNotifier is needed, such as "
                "StdoutJobNotifier()"
            )
        self.stage_name = stage_name
        self.job_notifier = job_notifier

    def report_progress(
        self,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Report progress; None means unchanged.

        Args:
            tot_num_samples: samples of the stage.
            processed_num_samples: samples that are done; it is cut to the total and to 0, with a warning.
            monitoring_link: address where the stage can be watched.
            checkpoints: paths of checkpoints that were written.
        """
        if processed_num_samples is not None:
            allowed = max(0, processed_num_samples if tot_num_samples is None else tot_num_samples)
            within = min(max(0, processed_num_samples), allowed)
            if within != processed_num_samples:
                total = "" if tot_num_samples is None else f" of {tot_num_samples}"
                warnings.warn(
                    f"stage {self.stage_name!r}: {processed_num_samples}{total} samples processed cannot be; "
                    f"reported as {within}",
                    stacklevel=2,
                )
            processed_num_samples = within
        self.job_notifier.report_progress(
            self.stage_name, tot_num_samples, processed_num_samples, monitoring_link, checkpoints
        )


class StdoutJobNotifier(JobNotifier):
    """Prints a line for every tenth of a stage, every checkpoint and every new link.

    Args:
        job_id: the name of the job.
        file: what lines are printed to, by default standard output at that time.
    """

    def __init__(self, job_id: str = "local", file: TextIO | None = None) -> None:
        super().__init__(job_id)
        self._file = file
        self._shown: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}

    def report_progress(
        self,
        stage: str,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Print what is new."""
        self.register_stages([stage])
        if tot_num_samples and processed_num_samples is not None:
            reached = (tot_num_samples, processed_num_samples * _TENTHS // tot_num_samples)
            if self._shown.get(stage) != reached:
                self._shown[stage] = reached
                share = processed_num_samples / tot_num_samples
                self._print(f"{stage}: {processed_num_samples:,} of {tot_num_samples:,} samples ({share:.0%})")
        if monitoring_link is not None and self._links.get(stage) != monitoring_link:
            self._links[stage] = monitoring_link
            self._print(f"{stage}: watch it at {monitoring_link}")
        for checkpoint in checkpoints or ():
            self._print(f"{stage}: checkpoint {checkpoint}")

    def report_error(self, error: str) -> None:
        """Print that the job has failed."""
        self._print(f"job {self.job_id} failed: {error}")

    def complete(self) -> None:
        """Print that the job is complete."""
        self._print(f"job {self.job_id} is complete")

    def _print(self, line: str) -> None:
        print(line, file=self._file or sys.stdout, flush=True)


class StdoutStageNotifier(StageNotifier):
    """Prints the progress of a stage, of a job or of none.

    Args:
        notifier: that of the job, which prints; or the name of the stage, if it belongs to no job.
        stage: the name of the stage of that job.

    Raises:
        ConfigurationError: arguments in another order.
    """

    def __init__(self, notifier: JobNotifier | str = "stage", stage: str | None = None) -> None:
        if isinstance(notifier, str) and stage is not None:
            raise ConfigurationError(
                f"StdoutStageNotifier({notifier!r}, {stage!r}): first comes the notifier of the job, then the stage: "
                "StdoutStageNotifier(StdoutJobNotifier(), 'train'); the stage alone if it belongs to no job"
            )
        name, job = (notifier, StdoutJobNotifier()) if isinstance(notifier, str) else (stage, notifier)
        super().__init__("stage" if name is None else name, job)


class SimpleProgressNotifier:
    """A stage of one sample, which is done when the block ends without an error.

    >>> with SimpleProgressNotifier(StdoutStageNotifier("merge")):
    ...     pass
    merge: 0 of 1 samples (0%)
    merge: 1 of 1 samples (100%)
    """

    def __init__(self, stage: StageNotifier) -> None:
        self.stage = stage

    def __enter__(self) -> Self:
        self.stage.report_progress(tot_num_samples=1, processed_num_samples=0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.stage.report_progress(tot_num_samples=1, processed_num_samples=1)
