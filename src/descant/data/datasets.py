"""Reading datasets: every bad row is reported, with place and reason, before training starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from descant.arguments import missing_await
from descant.data.bad_row import BadRow
from descant.data.keys import UnreadKeys
from descant.data.messages import TrainedTurns
from descant.data.pairs import Pair, pair_of_row
from descant.data.rows import thread_of_row
from descant.data.sources import rows_of
from descant.errors import ConfigurationError, DatasetError
from descant.text import quoted
from descant.threads.thread import StringThread

_T = TypeVar("_T")


def load_threads(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    trained_turns: TrainedTurns = "all",
    on_bad_row: Literal["error", "skip"] = "error",
) -> list[StringThread]:
    """The threads of a file, a ``datasets`` object or any rows, in their order.

    A row has one of these forms; all others of its columns become the thread's metadata, and those of a column
    ``metadata`` that is an object.

    - ``messages``, or ``input``: a list of ``{"role", "content"}`` or ``[role, content]``. A column ``weights`` may
      give one number for each.
    - ``prompt``: a string or messages, and, for training, ``completion``: a string or messages. Assistant turns in the
      prompt weigh 0. The other forms are prompts too if there is a ``completion``.
    - ``conversations``: ShareGPT's list of ``{"from", "value"}``, optionally with a column ``system``.

    Messages may have ``tool_calls``, ``tool_call_id``, and marks that say whether they are trained (``weight``,
    ``train``, ``loss``, ...: docs/data.md). What may be a mark and is not known is refused by name; other keys are
    counted in a warning. A column ``tools`` has schemas of tools. A null counts as absent. ``thread.source`` says where
    a thread was read: ``train.jsonl:12`` is a line, counted from 1; ``train.json[3]`` and ``train.parquet[3]`` are
    rows, counted from 0.

    Args:
        source: the path of a file of JSON (one object a line, or one list of objects; optionally packed by gzip) or of
            a Parquet file, under any name; or a ``datasets.Dataset``; or an iterable of rows.
        trained_turns: which assistant turns weigh 1 where the row gives them no weight: "all", or the "last".
        on_bad_row: "error", or "skip", which leaves bad rows out with one warning that counts them.

    Raises:
        DatasetError: the file is missing, empty, cut off or not UTF-8, or it has bad rows (under "skip": nothing
            else); ``problems`` has all of them as (place, reason), the message the first ten.
        ConfigurationError: the source, ``trained_turns`` or ``on_bad_row`` is of another kind.
    """
    if trained_turns not in ("all", "last"):
        raise ConfigurationError(f"trained_turns={quoted(trained_turns)} must be 'all' or 'last'")

    def read(row: Any, unread: UnreadKeys, template: str, number: int) -> StringThread:
        return thread_of_row(row, unread, trained_turns).read_from(template, number)

    return _load(source, on_bad_row, "threads", read)


_Path = str | PathLike[str]
ThreadSource = Sequence[StringThread] | _Path | Sequence[_Path] | Iterable[Mapping[str, Any]]
"""What is taken wherever threads are: a list of them, or what ``load_threads`` reads; or a list of paths."""


def threads_of(name: str, source: Any) -> Sequence[StringThread]:
    """Threads as they are, or those that ``load_threads`` reads of a source, in the order of its files if it is a list
    of paths. What else stands in a list is for the caller to refuse.

    Raises:
        DatasetError, ConfigurationError: as ``load_threads``; ``name`` is what the source is called.
    """
    is_list = isinstance(source, list | tuple)
    first = source[0] if is_list and source else None
    if is_list and first is not None and all(isinstance(each, str | PathLike) for each in source):
        if isinstance(first, str) and not any(Path(each).exists() for each in source):
            raise ConfigurationError(
                f"{name}[0]={quoted(first)} is text, and there is no such file; a thread is StringThread().user(text)"
            )
        return [thread for path in source for thread in load_threads(path)]
    is_data = isinstance(source, str | PathLike | Mapping) or hasattr(source, "column_names")
    if is_data or isinstance(first, Mapping) or type(source).__name__ == "DataFrame":
        return load_threads(source)
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise ConfigurationError(
            f"{name}={quoted(source)} is a {type(source).__name__}; a list of threads is needed, the path of a file, "
            f"a datasets.Dataset, or a list of rows{missing_await(source)}"
        )
    threads: Sequence[StringThread] = source
    return threads


def load_pairs(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]], *, on_bad_row: Literal["error", "skip"] = "error"
) -> list[Pair]:
    """The preference pairs of a dataset, each as ``(chosen, rejected)``: two threads with the same prompt.

    A row has ``chosen`` and ``rejected``, or ``preferred_completion`` and ``other_completion``: answers to a
    ``prompt`` (a string or messages; or in one of the other forms), or whole conversations whose common beginning is
    the prompt. The answers weigh 1, or what their messages say, and the prompt 0. Sources, tools and metadata are those
    of ``load_threads``.

    Raises:
        DatasetError: as ``load_threads``. Two equal answers are a bad row.
        ConfigurationError: the source, or ``on_bad_row``, is of another kind.
    """

    def read(row: Any, unread: UnreadKeys, template: str, number: int) -> Pair:
        chosen, rejected = pair_of_row(row, unread)
        return chosen.read_from(template, number), rejected.read_from(template, number)

    return _load(source, on_bad_row, "preference pairs", read)


def _load(source: Any, on_bad_row: str, what: str, read: Callable[[Any, UnreadKeys, str, int], _T]) -> list[_T]:
    if on_bad_row not in ("error", "skip"):
        raise ConfigurationError(f"on_bad_row={quoted(on_bad_row)} must be 'error' or 'skip'")
    rows = rows_of(source)
    loaded: list[_T] = []
    problems: list[tuple[str, str]] = []
    unread = UnreadKeys()
    for number, row in rows.items:
        try:
            if isinstance(row, BadRow):
                raise row
            loaded.append(read(row, unread, rows.template, number))
        except (BadRow, ConfigurationError) as error:
            problems.append((rows.template_in_lists % number, str(error)))
        except (RecursionError, TypeError, ValueError) as error:  # nested too deeply, or values that JSON does not have
            reason = "nested too deeply" if isinstance(error, RecursionError) else f"{error}; JSON has no such values"
            problems.append((rows.template_in_lists % number, f"cannot be read: {reason}"))
    num_rows = len(loaded) + len(problems)
    if num_rows == 0:
        raise DatasetError(f"{rows.name} is empty: there is no row in it")
    if problems and (on_bad_row == "error" or not loaded):
        raise DatasetError(f"{rows.name}: {len(problems)} of {num_rows} rows cannot be read as {what}", problems)
    if problems:
        message = f"{rows.name}: {len(problems)} of {num_rows} rows cannot be read as {what} and are left out"
        warnings.warn(str(DatasetError(message, problems, num_shown=3)), UserWarning, stacklevel=3)
    if unread.counts:
        warnings.warn(f"{rows.name}: {unread.describe()}", UserWarning, stacklevel=3)
    return loaded
