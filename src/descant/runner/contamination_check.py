"""ContaminationCheck: do callbacks evaluate on prompts that are trained on?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from descant.callbacks.base import RecipeCallback
from descant.data.contamination import Contamination, find_contamination
from descant.errors import ConfigurationError, DatasetError
from descant.threads.thread import StringThread

Policy = Literal["warn", "error", "ignore"]
"""What follows when they do."""


class ContaminationCheck:
    """Compares the threads that callbacks evaluate on with a training set.

    Args:
        training_set: what is trained on; nothing is compared without one.
        policy: "warn" reports what is found, "error" raises, "ignore" does not look.

    Raises:
        ConfigurationError: another policy, or "error" without a training set.
    """

    def __init__(self, training_set: Sequence[StringThread] | None, policy: Policy) -> None:
        check_policy(policy)
        if policy == "error" and training_set is None:
            raise ConfigurationError('contamination="error" needs training_set=: the threads that are trained on')
        self.training_set, self.policy = training_set, policy

    async def run(self, callbacks: Sequence[RecipeCallback]) -> list[Contamination]:
        """What is found, callbacks with the same threads together; off the event loop.

        Raises:
            DatasetError: something is found, and the policy is "error".
        """
        if self.training_set is None or self.policy == "ignore":
            return []
        names, validation_sets = _grouped(callbacks)
        if not validation_sets:
            return []
        found = [
            replace(contamination, name=", ".join(names[contamination.name]))
            for contamination in await asyncio.to_thread(find_contamination, self.training_set, validation_sets)
        ]
        if found and self.policy == "error":
            problems = [(f"callback {contamination.name}", contamination.describe()) for contamination in found]
            raise DatasetError(
                "callbacks evaluate on prompts that are trained on, so what they measure is not generalisation "
                '(contamination="error"); take them out of one of the sets',
                problems,
            )
        return found


def _grouped(callbacks: Sequence[RecipeCallback]) -> tuple[dict[str, list[str]], dict[str, Sequence[StringThread]]]:
    """The validation sets under the name of the first callback with it, and the names of all that have it."""
    names: dict[str, list[str]] = {}
    sets: dict[str, Sequence[StringThread]] = {}
    first_with: dict[tuple[str, ...], str] = {}
    for callback in callbacks:
        if threads := callback.validation_threads():
            prompts = tuple(thread.without_completion().uuid() for thread in threads)
            first = first_with.setdefault(prompts, callback.name)
            names.setdefault(first, []).append(callback.name)
            sets.setdefault(first, threads)
    return names, sets


def check_policy(policy: Policy) -> None:
    """Raises ConfigurationError for what is not a policy."""
    if policy not in get_args(Policy):
        allowed = ", ".join(map(repr, get_args(Policy)))
        raise ConfigurationError(f"contamination={policy!r} must be one of {allowed}")
