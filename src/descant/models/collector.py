"""Collector: makes one list call of single calls that are made together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ListCall = Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]]


@dataclass(slots=True)
class _Batch:
    items: list[Any]
    task: asyncio.Task[Sequence[Any]]
    num_waiting: int = 0


class Collector:
    """Collects the calls under one key in one turn of the event loop, as from ``asyncio.gather``."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch] = {}

    async def call(self, key: Hashable, item: ItemT, list_call: ListCall[ItemT, ResultT]) -> ResultT:
        """The result for ``item`` of one ``list_call`` over all items under ``key``; raises if that is an exception.

        When every caller of a list call has been cancelled, so is the list call.
        """
        loop = asyncio.get_running_loop()
        key = (loop, key)  # a grader in a thread may run a loop of its own
        if (batch := self._open.get(key)) is None:
            loop.call_soon(self._open.pop, key)
            items: list[ItemT] = []
            task = asyncio.Task(_results(list_call, items), loop=loop)  # begins in the next turn, whatever the factory
            batch = self._open[key] = _Batch(items, task)
        index = len(batch.items)
        batch.items.append(item)
        batch.num_waiting += 1
        try:
            await asyncio.wait([batch.task])
        finally:
            batch.num_waiting -= 1
            if not batch.num_waiting:
                batch.task.cancel()
        result: ResultT | Exception = batch.task.result()[index]
        if isinstance(result, Exception):
            raise result
        return result


async def _results(list_call: ListCall[ItemT, ResultT], items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
    try:
        return await list_call(items)
    except Exception as error:
        return [error] * len(items)
