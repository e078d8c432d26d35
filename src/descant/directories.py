"""Directories that are written whole: under a hidden name first, and then in the place of what was there."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from descant.errors import SaveError

_CURRENT_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, of renameat2(2)
_HIDDEN = re.compile(r"\..+\.[0-9a-f]{8}\.(new|old)")


@contextmanager
def written_whole(path: Path, check_replaceable: Callable[[Path], None]) -> Iterator[Path]:
    """An empty directory to write into, which takes the place of ``path`` when the block ends.

    If the block raises, or the process is killed at any point, what was at ``path`` is still there, whole. (On a file
    system that cannot exchange two directories, such as NFS, a kill between two renames leaves it hidden beside its
    name; the next save brings it back.) What killed processes have left of earlier tries is deleted.

    Args:
        path: symbolic links are followed, so that the files lie where the links lead.
        check_replaceable: raises SaveError if a directory that exists must not be replaced.

    Raises:
        SaveError: ``path`` cannot be written or must not be replaced, with the reason.
    """
    try:
        target = _followed(path)
        if target.exists():
            check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target)
        written = _hidden_name(target, "new")
        written.mkdir()
        try:
            with _locked(written):
                yield written
                _flush(written)
                _put_in_place(written, target)
        finally:
            shutil.rmtree(written, ignore_errors=True)  # or what it was exchanged with
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error}; what was there is as it was") from error


def remove_whole(path: Path) -> None:
    """Delete a directory, under a hidden name first, so that a kill never leaves half of it under its own."""
    if path.exists():
        shutil.rmtree(path.rename(_hidden_name(path, "new")))


def _followed(path: Path) -> Path:
    """Where the links of a path lead; SaveError if no directory can be written there."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise SaveError(f"cannot save to {path}: {place} is a link to {place.readlink()}, which does not exist")
    target = path.resolve()
    if target.exists() and not target.is_dir():
        raise SaveError(f"cannot save to {path}: it is a file; name a directory")
    if target.is_mount():
        raise SaveError(f"cannot save to {path}: it is where a disk is mounted; name a directory in it")
    with suppress(FileNotFoundError):  # the working directory was deleted
        if Path.cwd().is_relative_to(target):
            raise SaveError(
                f"cannot save to {path}: the working directory {Path.cwd()} would be replaced; name another"
            )
    return target


def _hidden_name(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{kind}")


def _clear_leftovers(target: Path) -> None:
    """Delete the hidden directories of processes that were killed while they wrote ``target``."""
    for leftover in target.parent.glob(f".{escape(target.name)}.*"):
        if _HIDDEN.fullmatch(leftover.name):
            with suppress(OSError), _locked(leftover) as is_abandoned:  # a process that lives has locked its own
                if is_abandoned and leftover.suffix == ".old" and not target.exists():
                    leftover.rename(target)
                elif is_abandoned:
                    shutil.rmtree(leftover)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory, which ends with the process; False if another has it, or where there are none."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = True
    except OSError:
        is_held = False
    try:
        yield is_held
    finally:
        os.close(descriptor)


def _flush(directory: Path) -> None:
    """Have the files on disk before others are deleted; some file systems say only now that they are full."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _put_in_place(written: Path, target: Path) -> None:
    """Rename to ``target``; what was there, if anything, has the name of ``written`` then."""
    if not target.exists():
        written.rename(target)
    elif not _exchange(written, target):
        replaced = _hidden_name(target, "old")
        target.rename(replaced)
        try:
            written.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two directories in one step of the file system; False if it cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (os.fsencode(first), os.fsencode(second))
    return rename is not None and rename(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _EXCHANGE) == 0
