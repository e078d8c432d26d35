"""Splitting a dataset into a training and a validation set, so that no prompt is in both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from descant.arguments import is_finite_number
from descant.data.normal_form import normal_turns
from descant.data.pairs import Pair
from descant.errors import ConfigurationError, DatasetError
from descant.seeds import derive_seed
from descant.text import quoted
from descant.threads.thread import StringThread

_ThreadOrPair = TypeVar("_ThreadOrPair", StringThread, Pair)


def train_validation_split(
    threads: Iterable[_ThreadOrPair], validation_fraction: float = 0.1, *, seed: int = 0
) -> tuple[list[_ThreadOrPair], list[_ThreadOrPair]]:
    """The training and the validation part of threads, or of pairs, each in the order that they had.

    Threads that begin alike are on the same side: those whose first turns, without system turns, have the same normal
    form, so that ``find_contamination`` finds nothing of one side in the other. The side depends on the beginnings, how
    often each occurs, and the seed, not on the order of the threads: beginnings are taken in a random order, each with
    all of its threads, as long as they fit. So sizes are exact if each beginning occurs once, and otherwise as near as
    the groups allow. Neither side is empty.

    Args:
        threads: from ``load_threads`` or ``load_pairs``.
        validation_fraction: of the threads, above 0 and below 1.
        seed: another seed is another split.

    Raises:
        ConfigurationError: a fraction that is not between 0 and 1, a seed that is not a whole number, or something
            that is no thread and no pair.
        DatasetError: all threads begin alike.
    """
    if not is_finite_number(validation_fraction) or not 0 < validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={quoted(validation_fraction)} must be above 0 and below 1")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigurationError(f"seed={quoted(seed)} must be a whole number")
    threads = list(threads)
    prompts = [_beginning(thread, index) for index, thread in enumerate(threads)]
    group_sizes = Counter(prompts)
    if len(group_sizes) < 2:
        counted = f"all {len(prompts)} threads begin alike" if prompts else "there are no threads"
        raise DatasetError(f"{counted}; a split needs two different beginnings at least")
    target = min(max(1, int(len(prompts) * validation_fraction + 0.5)), len(prompts) - 1)
    order = sorted(group_sizes, key=lambda prompt: derive_seed("split", seed, prompt))
    smaller_side = _choose(order, group_sizes, min(target, len(prompts) - target))
    is_validation = target <= len(prompts) - target
    sides: tuple[list[_ThreadOrPair], list[_ThreadOrPair]] = [], []
    for thread, prompt in zip(threads, prompts, strict=True):
        sides[(prompt in smaller_side) == is_validation].append(thread)
    return sides


def _choose(prompts: list[str], group_sizes: Counter[str], target: int) -> set[str]:
    """Prompts of ``target`` threads together, or as near to it as the groups in this order allow."""
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


def _beginning(thread: StringThread | Pair, index: int) -> str:
    """The first turn, normalised: threads have it in common if one prompt is the other or its beginning."""
    if isinstance(thread, StringThread):
        return "".join(f"{role}:{text}" for role, text in normal_turns(thread, 1))
    if isinstance(thread, tuple) and len(thread) == 2 and all(isinstance(side, StringThread) for side in thread):
        chosen, rejected = (_beginning(side, index) for side in thread)
        if chosen == rejected:
            return chosen
        raise ConfigurationError(f"threads[{index}] is a pair without a common prompt: its sides begin differently")
    raise ConfigurationError(f"threads[{index}] is a {type(thread).__name__}, not a StringThread or a pair of them")
