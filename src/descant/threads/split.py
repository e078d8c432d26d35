"""Splitting a dataset into a training and a validation set, so that no prompt is in both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from descant.errors import ConfigurationError, DatasetError
from descant.seeds import derive_seed
from descant.threads.pairs import Pair, common_prompt_length
from descant.threads.quoting import quoted
from descant.threads.thread import StringThread

_ThreadOrPair = TypeVar("_ThreadOrPair", StringThread, Pair)


def train_validation_split(
    threads: Sequence[_ThreadOrPair], validation_fraction: float = 0.1, *, seed: int = 0
) -> tuple[list[_ThreadOrPair], list[_ThreadOrPair]]:
    """The training and the validation part of threads, or of pairs, each in the order that they had.

    Equal prompts (all turns but a final assistant turn, and the tools) are always on the same side. Which side that
    is depends on the prompts, their numbers and the seed, not on the order of the threads: prompts are taken in a
    random order, each with all of its threads, as long as they fit. So sizes are exact if each prompt stands once, and
    else as near as the next group of equal prompts lets them come. Neither side is empty.

    Args:
        threads: from ``load_threads`` or ``load_pairs``.
        validation_fraction: of the threads, above 0 and below 1.
        seed: another seed is another split.

    Raises:
        ConfigurationError: a fraction that is not between 0 and 1, or something that is no thread and no pair.
        DatasetError: there are not two different prompts.
    """
    if isinstance(validation_fraction, bool) or not isinstance(validation_fraction, int | float):
        raise ConfigurationError(f"validation_fraction={quoted(validation_fraction)} must be a number between 0 and 1")
    if not 0 < validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={validation_fraction!r} must be above 0 and below 1")
    prompts = [_prompt_id(thread, index) for index, thread in enumerate(threads)]
    group_sizes = Counter(prompts)
    if len(group_sizes) < 2:
        counted = f"all {len(prompts)} threads have the same prompt" if prompts else "there are no threads"
        raise DatasetError(f"{counted}; a split needs two different prompts at least")
    target = min(max(1, int(len(prompts) * validation_fraction + 0.5)), len(prompts) - 1)
    order = sorted(group_sizes, key=lambda prompt: derive_seed("split", seed, prompt))
    smaller_side = _choose(order, group_sizes, min(target, len(prompts) - target))
    is_validation = target <= len(prompts) - target
    sides: tuple[list[_ThreadOrPair], list[_ThreadOrPair]] = [], []
    for thread, prompt in zip(threads, prompts, strict=True):
        sides[(prompt in smaller_side) == is_validation].append(thread)
    return sides


def _choose(prompts: list[str], group_sizes: Counter[str], target: int) -> set[str]:
    """Prompts of ``target`` threads together, or as near to it as the groups, in this order, come."""
    chosen: set[str] = set()
    missing = target
    for prompt in prompts:
        if group_sizes[prompt] <= missing:
            chosen.add(prompt)
            missing -= group_sizes[prompt]
    left = [prompt for prompt in prompts if prompt not in chosen]
    smallest = min(left, key=group_sizes.__getitem__)
    if missing and (not chosen or (len(left) > 1 and group_sizes[smallest] - missing < missing)):
        chosen.add(smallest)
    return chosen


def _prompt_id(thread: StringThread | Pair, index: int) -> str:
    if isinstance(thread, StringThread):
        return thread.without_completion().uuid()
    if isinstance(thread, tuple) and len(thread) == 2 and all(isinstance(side, StringThread) for side in thread):
        return thread[0].first_turns(common_prompt_length(*thread)).uuid()
    raise ConfigurationError(f"threads[{index}] is a {type(thread).__name__}, not a StringThread or a pair of them")
