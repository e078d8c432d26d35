"""check_contamination: do callbacks evaluate on prompts that are trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from descant.callbacks.base import RecipeCallback
from descant.data.contamination import Contamination, find_contamination
from descant.errors import DatasetError
from descant.models.off_loop import off_loop
from descant.threads.thread import StringThread

Policy = Literal["warn", "error", "ignore"]
"""What follows when they do."""


async def check_contamination(
    callbacks: Sequence[RecipeCallback], training_set: Sequence[StringThread] | None, policy: Policy
) -> list[Contamination]:
    """The prompts that callbacks evaluate on and that are trained on, too; callbacks with the same ones together.

    Nothing is compared without a training set, or if the policy is "ignore". Runs off the event loop.

    Raises:
        DatasetError: something is found, and the policy is "error".
    """
    if training_set is None or policy == "ignore":
        return []
    names: dict[tuple[str, ...], list[str]] = {}
    sets: dict[tuple[str, ...], Sequence[StringThread]] = {}
    for callback in callbacks:
        if threads := callback.validation_threads():
            prompts = tuple(thread.without_completion().uuid() for thread in threads)
            names.setdefault(prompts, []).append(callback.name)
            sets.setdefault(prompts, threads)
    if not sets:
        return []
    validation_sets = {", ".join(names[prompts]): threads for prompts, threads in sets.items()}
    found = await off_loop(find_contamination, training_set, validation_sets)
    if found and policy == "error":
        problems = [(f"callback {contamination.name}", contamination.describe()) for contamination in found]
        raise DatasetError(
            "callbacks evaluate on prompts that are trained on, so what they measure is not generalisation "
            '(contamination="error"); take them out of one of the sets',
            problems,
        )
    return found
