"""Examples: validation threads with an identity that stays the same for the whole run."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

from descant.arguments import check_whole_number
from descant.data.datasets import ThreadSource, threads_of
from descant.errors import ConfigurationError, DatasetError
from descant.threads.thread import StringThread


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A validation thread.

    Attributes:
        example_id: made from the content of the thread as it was given; the nth copy has ``#n`` behind it.
        prompt_id: made from its prompt alone; examples with the same prompt are not independent of each other.
        thread: the thread, or what is left of it as a prompt.
        reference: what an answer is compared with: ``metadata["reference"]``, else the completion that was taken off,
            as the model would write it; None if there is neither.
    """

    example_id: str
    prompt_id: str
    thread: StringThread
    reference: Any = None

    @property
    def given_reference(self) -> Any:
        """The value of the dataset's own column of that name; None if there is none."""
        return self.thread.metadata.get("reference") if isinstance(self.thread.metadata, dict) else None

    def as_prompt(self, written: str | None) -> Example:
        """The example without the completion at its end, which the model must not see when it is asked for its own.

        The completion becomes the reference, for graders in ``metadata["reference"]``, unless the dataset has a column
        of that name with a value in it.

        Args:
            written: the completion as the model would write it; None if there is none.
        """
        prompt, given = self.thread.without_completion(), self.given_reference
        reference = written if given is None else given
        if written is not None and (prompt.metadata is None or isinstance(prompt.metadata, dict)):
            prompt.metadata = {**(prompt.metadata or {}), "reference": reference}
        return replace(self, thread=prompt, reference=reference)


def make_examples(threads: ThreadSource, argument: str, limit: int | None = None) -> list[Example]:
    """One example per thread, in order, for the first ``limit`` of them; ``argument`` is what they are called in
    messages.

    Raises:
        DatasetError: there are no threads, or one has no turns; or as ``load_threads``.
        ConfigurationError: something in the list is not a ``StringThread``, or a limit that is not a whole number.
    """
    check_whole_number("limit", limit, or_none=True)
    threads = threads_of(argument, threads)
    if not threads:
        raise DatasetError(f"{argument} is empty: give at least one thread")
    copies: Counter[str] = Counter()
    examples = []
    for position, thread in enumerate(threads[:limit]):
        if not isinstance(thread, StringThread):
            raise ConfigurationError(f"{argument}[{position}] is a {type(thread).__name__}, not a StringThread")
        if not thread.messages():
            raise DatasetError(f"{thread.source or f'{argument}[{position}]'} has no turns that could be a prompt")
        thread_id, prompt_id = thread.uuid(), thread.without_completion().uuid()
        copies[thread_id] += 1
        example_id = thread_id if copies[thread_id] == 1 else f"{thread_id}#{copies[thread_id]}"
        examples.append(Example(example_id, prompt_id, own_copy(thread)))
    return examples


def own_copy(thread: StringThread) -> StringThread:
    """The thread with metadata of its own."""
    own = copy(thread)
    with suppress(Exception):  # of objects that cannot be copied
        own.metadata = deepcopy(thread.metadata)
    return own
