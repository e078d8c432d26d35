"""Model, Dataset, Grader: config fields that may be a plain string, checked before anything loads."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, PositiveInt, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from descant.arguments import what_was_meant
from descant.data.datasets import load_pairs, load_threads
from descant.data.pairs import Pair
from descant.errors import ConfigurationError, DatasetError, ModelLoadError
from descant.graders.base import BaseGrader
from descant.graders.contains import ContainsGrader
from descant.graders.exact_match import ExactMatchGrader
from descant.graders.numeric import NumericGrader
from descant.text import did_you_mean
from descant.threads.thread import StringThread

if TYPE_CHECKING:
    from descant.models.builder import ModelBuilder
    from descant.models.inference import InferenceModel
    from descant.models.training import TrainingModel

_HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".parquet", ".csv", ".txt")
_READY_GRADERS = {"contains": ContainsGrader, "exact_match": ExactMatchGrader, "numeric": NumericGrader}
_SETTINGS = ConfigDict(extra="forbid", str_strip_whitespace=True)


@dataclass(frozen=True, config=_SETTINGS)
class _Parameter:
    """A config field: a table, or its first key alone as a string. One that cannot work is a ``ValidationError``."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        keys = [field.name for field in fields(cls)]
        if isinstance(value, str | Path):
            return {keys[0]: str(value)}
        if not isinstance(value, dict | ArgsKwargs):
            raise ValueError(f"must be a string, or a table with {', '.join(keys)}")
        for key in value if isinstance(value, dict) else ():
            if key not in keys:
                hint = what_was_meant(str(key), keys, "keys")
                raise ValueError(f"there is no key {key!r}; {hint}")
        return value

    def __str__(self) -> str:
        return str(getattr(self, fields(self)[0].name))

    @property
    def _path(self) -> Path:
        return Path(str(self)).expanduser()

    def _is_one(self, path: Path) -> bool:
        return path.is_file()

    def _close(self) -> str:
        """The path that was probably meant, as the end of a message."""
        there = [path.name for path in self._path.parent.glob("*") if self._is_one(path)]
        close = get_close_matches(self._path.name, there, n=1)
        return f"; did you mean {str(self._path.parent / close[0])!r}?" if close else ""


@dataclass(frozen=True, config=_SETTINGS)
class Model(_Parameter):
    """A model: a directory that Transformers has saved, or a hub id, which is looked up when it is loaded."""

    model_key: str
    precision: Literal["float32", "mixed", "bfloat16"] | None = None
    kv_cache_len: PositiveInt | None = None
    tokens_to_generate: PositiveInt | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        path = self._path
        if self.model_key and path.is_dir():
            if not self._is_one(path):
                raise ConfigurationError(
                    f"the directory {self.model_key!r} has no config.json: it is not a saved model"
                )
        elif path.exists() or not _HUB_ID.fullmatch(self.model_key):
            raise ConfigurationError(
                f"there is no model directory {self.model_key!r} (the working directory is {Path.cwd()}); give a "
                f"directory that Transformers has saved, or a hub id such as 'Qwen/Qwen3-0.6B'{self._close()}"
            )

    def _is_one(self, path: Path) -> bool:
        return (path / "config.json").is_file()

    async def spawn_train(self, name: str, max_batch_size: int) -> TrainingModel:
        """Load it for training; see ``ModelBuilder.spawn_train``."""
        with self._builder() as builder:
            return await builder.spawn_train(name, max_batch_size)

    async def spawn_inference(self, name: str) -> InferenceModel:
        """Load it for generation and scoring; see ``ModelBuilder.spawn_inference``."""
        with self._builder() as builder:
            return await builder.spawn_inference(name)

    @contextmanager
    def _builder(self) -> Iterator[ModelBuilder]:
        """Its errors name the closest directory, since the name of one could have been a hub id."""
        from descant import ModelBuilder  # noqa: PLC0415  # it imports torch, which a config must not

        settings = {name: value for name, value in asdict(self).items() if value is not None}
        try:
            yield ModelBuilder(settings.pop("model_key"), **settings)
        except ModelLoadError as error:
            if self._path.is_dir() or not (close := self._close()):
                raise
            raise ModelLoadError(f"{error}{close}") from error


@dataclass(frozen=True, config=_SETTINGS)
class Dataset(_Parameter):
    """Threads: a file that ``load_threads`` reads, or a ``split`` of a data set of the hub (``datasets`` is needed).

    Of a conversation the last assistant turn is trained, as in the recipe API; with ``trained_turns="all"``, each is.
    """

    dataset_key: str
    split: str = "train"
    trained_turns: Literal["all", "last"] = "last"
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if not self.dataset_key:
            raise ConfigurationError("a path or a hub id is needed, not an empty string")
        if self._path.is_file():
            return
        if self._path.is_dir():
            raise ConfigurationError(f"{self.dataset_key!r} is a directory; give a file in it")
        if self.dataset_key.lower().endswith(_FILE_SUFFIXES) or not _HUB_ID.fullmatch(self.dataset_key):
            raise ConfigurationError(
                f"there is no file {self.dataset_key!r} (the working directory is {Path.cwd()}){self._close()}"
            )
        if find_spec("datasets") is None:
            raise ConfigurationError(
                f"there is no file {self.dataset_key!r}, and to load it from the hub the library datasets is needed: "
                "pip install datasets"
            )

    async def load(self) -> list[StringThread]:
        """The threads, read in a worker thread.

        Raises:
            DatasetError: rows that cannot be read, by line, see ``load_threads``; or a data set that is not on the hub.
        """
        return await asyncio.to_thread(
            lambda: load_threads(self._source(), trained_turns=self.trained_turns, on_bad_row=self.on_bad_row)
        )

    async def load_prompts(self) -> list[StringThread]:
        """The threads without the assistant turns that they end in, as the recipe API reads its prompt datasets."""
        threads = await self.load()
        while any(thread.completion() is not None for thread in threads):
            threads = [thread.without_completion() for thread in threads]
        return threads

    async def load_pairs(self) -> list[Pair]:
        """The preference pairs, read in a worker thread; see ``load_pairs`` of ``descant``."""
        return await asyncio.to_thread(lambda: load_pairs(self._source(), on_bad_row=self.on_bad_row))

    def _source(self) -> Any:
        if self._path.is_file():
            return self._path
        datasets = importlib.import_module("datasets")
        try:
            return datasets.load_dataset(self.dataset_key, split=self.split)
        except Exception as error:  # of the library and of the hub's client
            raise DatasetError(
                f"{self.dataset_key!r} is neither a file here (the working directory is {Path.cwd()}) nor can it be "
                f"loaded from the hub: {type(error).__name__}: {error}{self._close()}"
            ) from error


@dataclass(frozen=True, config=_SETTINGS)
class Grader(_Parameter):
    """A grader: ``exact_match``, ``contains``, ``numeric``, or ``module:attribute`` for one of yours.

    The attribute is a grader, a class of graders that needs no arguments, or a function from thread to number. The
    module is imported when the config is read, also from the recipe's directory.
    """

    grader_key: str

    def __post_init__(self) -> None:
        self._target()

    async def load(self) -> BaseGrader:
        """The grader; of a class or a ready one a new instance."""
        target = self._target()
        if isinstance(target, BaseGrader):
            return target
        if isinstance(target, type):
            grader: BaseGrader = target()
            return grader
        return BaseGrader.from_function(self.grader_key.rpartition(":")[2], target)

    def _target(self) -> Any:
        if self.grader_key in _READY_GRADERS:
            return _READY_GRADERS[self.grader_key]
        module_name, colon, attribute = self.grader_key.partition(":")
        if not colon or not module_name or not attribute:
            hint = did_you_mean(self.grader_key, _READY_GRADERS, f"ready ones are {', '.join(_READY_GRADERS)}")
            raise ConfigurationError(
                f"there is no grader {self.grader_key!r}; {hint} (one of yours is named as module:attribute)"
            )
        try:
            target = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # importing a user's module may raise anything
            raise ConfigurationError(
                f"grader {self.grader_key!r} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
            ) from error
        is_class = isinstance(target, type) and issubclass(target, BaseGrader)
        if not (is_class or isinstance(target, BaseGrader) or (callable(target) and not isinstance(target, type))):
            raise ConfigurationError(
                f"grader {self.grader_key!r} is {target!r}; it must be a grader, a class of graders, or a function "
                "from thread to number"
            )
        return target


def _place(error: Exception) -> str:
    """File and line in the user's code, if it was raised there."""
    last = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith("<")][-1]
    return "" if last.filename in (__file__, importlib.__file__) else f" ({last.filename}, line {last.lineno})"
