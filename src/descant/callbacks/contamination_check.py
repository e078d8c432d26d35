"""ContaminationCheck: do callbacks evaluate on prompts that are trained on?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from descant.callbacks.base import RecipeCallback
from descant.errors import ConfigurationError, DatasetError
from descant.threads.contamination import Contamination, find_contamination
from descant.threads.thread import StringThread

Policy = Literal["warn", "error", "ignore"]
"""What follows when they do."""


class ContaminationCheck:
    """Compares the threads that callbacks evaluate on with a training set.

    Args:
        training_set: what is trained on; nothing is compared without one.
        policy: "warn" reports what is found, "error" raises, "ignore" does not look.

    Raises:
        ConfigurationError: another policy.
    """

    def __init__(self, training_set: Sequence[StringThread] | None, policy: Policy) -> None:
        if policy not in get_args(Policy):
            raise ConfigurationError(
                f"contamination={policy!r} must be one of {', '.join(map(repr, get_args(Policy)))}"
            )
        self.training_set, self.policy = training_set, policy

    async def run(self, callbacks: Sequence[RecipeCallback]) -> list[Contamination]:
        """What is found, callbacks with the same threads together; off the event loop.

        Raises:
            DatasetError: something is found, and the policy is "error".
        """
        validation_sets = {c.name: threads for c in callbacks if (threads := c.validation_threads())}
        if self.training_set is None or self.policy == "ignore" or not validation_sets:
            return []
        found = _joined(await asyncio.to_thread(find_contamination, self.training_set, validation_sets))
        if found and self.policy == "error":
            problems = [(f"callback {contamination.name}", contamination.describe()) for contamination in found]
            raise DatasetError(
                "callbacks evaluate on prompts that are trained on, so what they measure is not generalisation "
                '(contamination="error"); take them out of one of the sets',
                problems,
            )
        return found


def _joined(found: Sequence[Contamination]) -> list[Contamination]:
    """One finding for callbacks that evaluate on the same threads."""
    names: dict[Contamination, list[str]] = {}
    for contamination in found:
        names.setdefault(replace(contamination, name=""), []).append(contamination.name)
    return [replace(contamination, name=", ".join(of)) for contamination, of in names.items()]
