"""check_placement: both placements pass; and each check can fail, with a message that says why."""

import os
import re
from typing import ClassVar

import pytest

from descant import EvaluationPlacement
from descant.engine.weight_files import weight_files
from descant.models.weight_buffers import WeightBuffers
from descant.testing import check_placement


@pytest.mark.parametrize("where", ["thread", "process"])
async def test_passes(where):
    report = await check_placement(EvaluationPlacement(where=where))
    names = [check.name for check in report.checks]
    assert names == [
        "it says what the live model does",
        "versions do not mix",
        "what is cancelled stops",
        *(["a killed process is made up for"] if where == "process" else []),
        "nothing is left",
    ]


class OneCopyForAll(WeightBuffers):
    """Uses any copy that is held already, of another version too."""

    def _held(self, version):
        return next((buffer for buffer in self._buffers if buffer.version is not None), None)


class Deaf(WeightBuffers):
    """Finishes cancelled work."""

    async def start(self):
        await super().start()
        submit = self._evaluator.submit

        def submit_for_ever(job):
            pending = submit(job)
            pending.cancel = lambda: None
            pending.future.cancel = lambda: False
            return pending

        self._evaluator.submit = submit_for_ever


class KeepsItsFiles(WeightBuffers):
    kept: ClassVar = []

    async def close(self):
        names = [buffer.handle.name for buffer in self._buffers]
        self.kept += map(os.dup, weight_files(names).values())
        await super().close()


class ForgetsSettings(WeightBuffers):
    """Its handles sample at another temperature."""

    async def take(self, version):
        lease = await super().take(version)
        model = lease.model
        lease.model = lambda view: model(view.temperature(2.0))
        return lease


class NotRevived(WeightBuffers):
    """Does not replace a killed process."""

    async def start(self):
        await super().start()
        self._evaluator._revive = lambda: None


BAD = {
    ForgetsSettings: {
        "it says what the live model does": "' is generated, and '.*' by the live model; another num_thr"
    },
    NotRevived: {"a killed process is made up for": "WorkerDied: the process"},
    OneCopyForAll: {"versions do not mix": r"the log-probability of '0' is -[\d.]+, and -[\d.]+ on the live model"},
    Deaf: {"what is cancelled stops": "a generation of 400 tokens that was given up was made to its end"},
    KeepsItsFiles: {"nothing is left": r"the file .*memfd:.* after the end"},
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_one_is_caught_and_told_why(kind, monkeypatch):
    monkeypatch.setattr("descant.testing.placement_check.WeightBuffers", kind)
    where = "process" if kind is NotRevived else "thread"
    report = await check_placement(EvaluationPlacement(where=where), timeout_s=60, raise_on_failure=False)
    while KeepsItsFiles.kept:
        os.close(KeepsItsFiles.kept.pop())
    failed = {check.name: check.details for check in report.failures}
    assert set(BAD[kind]) <= set(failed)
    for name, message in BAD[kind].items():
        assert re.search(message, failed[name], flags=re.DOTALL), failed[name]
