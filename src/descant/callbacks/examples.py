"""Examples: validation threads with an identity that stays the same for the whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from descant.errors import ConfigurationError, DatasetError
from descant.threads.thread import StringThread


@dataclass(frozen=True, slots=True)
class Example:
    """A validation thread.

    Attributes:
        example_id: made from the content of the thread as it was given; the nth copy has ``#n`` behind it.
        thread: the thread, or what is left of it as a prompt.
        reference: the completion that it ended in, if it has been taken off.
    """

    example_id: str
    thread: StringThread
    reference: str | None = None

    def as_prompt(self) -> Example:
        """The example without the completion at its end, which the model must not see when it is asked for its own.

        The completion is kept as ``reference``, and for graders in ``metadata["reference"]``, unless the dataset has a
        column of that name.
        """
        completion = self.thread.completion()
        if completion is None:
            return self
        prompt = self.thread.without_completion()
        if prompt.metadata is None or isinstance(prompt.metadata, dict):
            prompt.metadata = {"reference": completion, **(prompt.metadata or {})}
        return replace(self, thread=prompt, reference=completion)


def make_examples(threads: Sequence[StringThread], argument: str, limit: int | None = None) -> list[Example]:
    """One example per thread, in order, for the first ``limit`` of them; ``argument`` is what the list is called in
    messages.

    Raises:
        DatasetError: there are no threads, or one has no turns.
        ConfigurationError: something in the list is not a ``StringThread``, or a limit that is not a whole number.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigurationError(f"limit={limit!r} must be a whole number of threads, at least 1, or None for all")
    if not threads:
        raise DatasetError(f"{argument} is empty: give at least one thread")
    copies: Counter[str] = Counter()
    examples = []
    for position, thread in enumerate(threads[:limit]):
        if not isinstance(thread, StringThread):
            raise ConfigurationError(f"{argument}[{position}] is a {type(thread).__name__}, not a StringThread")
        if not thread.messages():
            raise DatasetError(f"{thread.source or f'{argument}[{position}]'} has no turns that could be a prompt")
        thread_id = thread.uuid()
        copies[thread_id] += 1
        examples.append(Example(thread_id if copies[thread_id] == 1 else f"{thread_id}#{copies[thread_id]}", thread))
    return examples
