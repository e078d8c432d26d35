"""Where threads come from, and what they are: the files that they were read from, and a hash of their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from descant.threads.thread import StringThread

_HASH_LENGTH = 16
_BLOCK = 2**20
_MAX_HASHED = 2**28  # bytes of a file that is hashed as a whole, in half a second
_NUM_SAMPLED = 64  # blocks of a larger one


class Origin(str):
    """The template of the places of threads, such as ``train.jsonl:%d``, with what they were read from.

    ``facts`` are of a file its path, size and time as it was read, of another source what it says of itself.
    """

    __slots__ = ("facts",)
    facts: Mapping[str, Any]

    def __new__(cls, template: str, facts: Mapping[str, Any]) -> Self:
        """Made like a string."""
        made = super().__new__(cls, template)
        made.facts = facts
        return made

    def __getnewargs__(self) -> tuple[str, Mapping[str, Any]]:  # type: ignore[override] # copies and pickles keep them
        return str(self), self.facts


def file_facts(path: Path) -> Mapping[str, Any]:
    """A file that is about to be read, so that it is known later whether it is still the same."""
    status = path.stat()
    return {"path": str(path.absolute()), "num_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def describe_threads(threads: Sequence[StringThread]) -> dict[str, Any]:
    """Threads as settings of a run: their number, a hash of their content, and what they were read from.

    The content is what models see of them, in this order: turns, loss weights, tool calls and tools. A file is named
    with its size and SHA-256 (if it is larger than 256 MB, that of its size and of 64 MB of it, evenly spaced); if it
    has changed since it was read, that is said. Of hashes, the first 16 digits are kept. It takes two microseconds per
    thread and half a second per file: call it off the event loop.
    """
    if not all(isinstance(thread, StringThread) for thread in threads):  # which is refused where they are used
        return {"num_samples": len(threads)}
    origins = {id(thread._source): thread._source for thread in threads if isinstance(thread._source, Origin)}
    numbers = Counter(tuple(origins[i].facts.items()) for i in map(id, (t._source for t in threads)) if i in origins)
    described: dict[str, Any] = {"num_samples": len(threads), "content_hash": content_hash(threads)}
    if numbers:
        is_one = list(numbers.values()) == [len(threads)]
        described["sources"] = [
            {**_current(dict(facts)), **({} if is_one else {"num_samples": number})}
            for facts, number in numbers.items()
        ]
    return described


def content_hash(threads: Sequence[StringThread]) -> str:
    """The hash of what models see of threads, in their order; it is the same on every machine."""
    digest = hashlib.sha256()
    for thread in threads:
        contents = thread._contents
        head = f"{thread._roles}{thread._weights}{[len(content) for content in contents]}"
        digest.update(f"{head}{''.join(contents)}".encode())
        if thread.tools or thread._links:
            links = [thread.chat_messages(), [tool.as_schema() for tool in thread.tools]]
            digest.update(json.dumps(links).encode())
    return digest.hexdigest()[:_HASH_LENGTH]


def _current(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a source: of a file its hash, if it is the one that was read."""
    if "mtime_ns" not in facts:
        return dict(facts)
    said = {"path": facts["path"], "num_bytes": facts["num_bytes"]}
    try:
        name, value = _file_hash(facts["path"], facts["num_bytes"], facts["mtime_ns"])
        is_same = file_facts(Path(facts["path"])) == facts
    except OSError:
        return {**said, "problem": "it could not be read again to hash it"}
    return {**said, name: value} if is_same else {**said, "problem": "it has changed since it was read"}


@lru_cache(maxsize=256)
def _file_hash(path: str, num_bytes: int, mtime_ns: int) -> tuple[str, str]:
    """The name and value of a file's hash; size and time say which version of the file it is."""
    with open(path, "rb") as file:
        if num_bytes <= _MAX_HASHED:
            return "sha256", hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_LENGTH]
        digest = hashlib.sha256(str(num_bytes).encode())
        for block in _sampled_blocks(num_bytes):
            file.seek(block * _BLOCK, os.SEEK_SET)
            digest.update(file.read(_BLOCK))
        return "sampled_sha256", digest.hexdigest()[:_HASH_LENGTH]


def _sampled_blocks(num_bytes: int) -> Iterator[int]:
    """The numbers of blocks from the first to the last, evenly spaced."""
    last = (num_bytes - 1) // _BLOCK
    return (number * last // (_NUM_SAMPLED - 1) for number in range(_NUM_SAMPLED))
