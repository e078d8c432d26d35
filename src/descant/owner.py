"""Owners: on whose behalf a model is called, so that no owner's numbers depend on who else is busy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from descant.errors import ObserverError
from descant.seeds import derive_seed
from descant.threads.thread import StringThread


class Owner:
    """The trainer and its user's code, or one call of one callback.

    Single calls of one owner are collected into batches, and sampling is seeded per owner: the nth completion of a
    thread gets the seed (owner's seed, thread, n). One call of a callback is a new owner with the same seed each
    time, so the same example is sampled with the same random numbers at every evaluation of a run.

    Args:
        name: who it is, in messages.
        seed: what its sampling seeds are made from.
        observer: it may look at models and not train them.
    """

    def __init__(self, name: str, seed: int, *, observer: bool) -> None:
        self.name = name
        self.seed = seed
        self.observer = observer
        self._num_completions: Counter[str] = Counter()

    def next_sampling_seed(self, thread: StringThread) -> int:
        """The seed of this owner's next completion of ``thread``."""
        thread_id = thread.uuid()
        self._num_completions[thread_id] += 1
        return derive_seed(self.seed, thread_id, self._num_completions[thread_id])

    def check_may_train(self, method: str) -> None:
        """Raises ObserverError if the owner only observes."""
        if self.observer:
            raise ObserverError(
                f"{method} was called from {self.name}: callbacks observe and must not train the model; "
                "train in a trainer or in code of your own"
            )


_current_owner: ContextVar[Owner | None] = ContextVar("descant_owner", default=None)


def current_owner() -> Owner | None:
    """The owner of the present task, or None in code that runs outside of every callback."""
    return _current_owner.get()


@contextmanager
def owner_scope(owner: Owner) -> Iterator[Owner]:
    """Everything that this task and the tasks it starts ask of models is asked on behalf of ``owner``."""
    token = _current_owner.set(owner)
    try:
        yield owner
    finally:
        _current_owner.reset(token)
