"""Model, Dataset, Grader: config fields for which a plain string is enough, checked before anything loads."""

from __future__ import annotations

import asyncio
import importlib
import re
from dataclasses import asdict
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from descant.errors import ConfigurationError
from descant.graders.base import BaseGrader
from descant.graders.contains import ContainsGrader
from descant.graders.exact_match import ExactMatchGrader
from descant.graders.numeric import NumericGrader
from descant.threads.datasets import load_threads
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
class Model:
    """Which model: a directory that Transformers has saved, or a hub id. In a config a string, or a table.

    Raises (as pydantic's ``ValidationError``):
        ConfigurationError: a directory that is not there or is no model. (A hub id is looked up when it is loaded.)
    """

    model_key: str
    precision: Literal["float32", "mixed", "bfloat16"] | None = None
    kv_cache_len: int | None = None
    tokens_to_generate: int | None = None
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return _as_table(value, "model_key")

    def __post_init__(self) -> None:
        path = Path(self.model_key).expanduser()
        if self.model_key and path.is_dir():
            if not (path / "config.json").is_file():
                raise ConfigurationError(
                    f"the directory {self.model_key!r} has no config.json: it is not a saved model"
                )
        elif path.exists() or not _HUB_ID.fullmatch(self.model_key):
            raise ConfigurationError(
                f"there is no model directory {self.model_key!r} (the working directory is {Path.cwd()}); give a "
                "directory that Transformers has saved, or a hub id such as 'Qwen/Qwen3-0.6B'"
            )

    def __str__(self) -> str:
        return self.model_key

    async def spawn_train(self, name: str, max_batch_size: int) -> TrainingModel:
        """Load it for training; see ``ModelBuilder.spawn_train``."""
        return await self._builder().spawn_train(name, max_batch_size)

    async def spawn_inference(self, name: str) -> InferenceModel:
        """Load it for generation and scoring; see ``ModelBuilder.spawn_inference``."""
        return await self._builder().spawn_inference(name)

    def _builder(self) -> ModelBuilder:
        from descant import ModelBuilder  # noqa: PLC0415  # it imports torch, which a config must not

        directory = Path(self.model_key).expanduser()
        settings = asdict(self)
        return ModelBuilder(
            directory if directory.is_dir() else settings["model_key"],
            **{name: value for name, value in settings.items() if name != "model_key" and value is not None},
        )


@dataclass(frozen=True, config=_SETTINGS)
class Dataset:
    """Which threads: a file that ``load_threads`` reads, or a data set of the hub (``datasets`` must be installed).

    In a config a string, or a table. A relative path counts from the working directory.

    Args:
        dataset_key: path or hub id.
        split: of a data set of the hub.
        on_bad_row: "error", or "skip".

    Raises (as pydantic's ``ValidationError``):
        ConfigurationError: a file that is not there, or a hub id without the library ``datasets``.
    """

    dataset_key: str
    split: str = "train"
    on_bad_row: Literal["error", "skip"] = "error"

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return _as_table(value, "dataset_key")

    def __post_init__(self) -> None:
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

    def __str__(self) -> str:
        return self.dataset_key

    @property
    def _path(self) -> Path:
        return Path(self.dataset_key).expanduser()

    def _close(self) -> str:
        there = [path.name for path in self._path.parent.glob("*") if path.is_file()]
        close = get_close_matches(self._path.name, there, n=1)
        return f"; did you mean {str(self._path.parent / close[0])!r}?" if close else ""

    async def load(self) -> list[StringThread]:
        """The threads, read in a thread of their own.

        Raises:
            DatasetError: rows that cannot be read, by line; see ``load_threads``.
        """
        return await asyncio.to_thread(self._load)

    def _load(self) -> list[StringThread]:
        if self._path.is_file():
            return load_threads(self._path, on_bad_row=self.on_bad_row)
        datasets = importlib.import_module("datasets")
        return load_threads(datasets.load_dataset(self.dataset_key, split=self.split), on_bad_row=self.on_bad_row)


@dataclass(frozen=True, config=_SETTINGS)
class Grader:
    """Which grader: ``exact_match``, ``contains``, ``numeric``, or ``module:attribute`` for one of yours.

    The attribute is a grader, a class of graders that needs no arguments, or a function from thread to number. The
    module is imported when the config is read; modules beside the recipe can be.

    Raises (as pydantic's ``ValidationError``):
        ConfigurationError: no such grader, or its module cannot be imported.
    """

    grader_key: str

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return _as_table(value, "grader_key")

    def __post_init__(self) -> None:
        self._target()

    def __str__(self) -> str:
        return self.grader_key

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
            raise ConfigurationError(
                f"there is no grader {self.grader_key!r}; ready ones are {', '.join(_READY_GRADERS)}, and one of yours "
                "is module:attribute"
            )
        try:
            target = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # whatever a module of the user's does when it is imported
            raise ConfigurationError(
                f"grader {self.grader_key!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        is_class = isinstance(target, type) and issubclass(target, BaseGrader)
        if not (is_class or isinstance(target, BaseGrader) or (callable(target) and not isinstance(target, type))):
            raise ConfigurationError(
                f"grader {self.grader_key!r} is {target!r}; it must be a grader, a class of graders, or a function "
                "from thread to number"
            )
        return target


def _as_table(value: Any, key: str) -> Any:
    """A plain string or path as the table that it stands for; an instance as what it was made from."""
    return {key: str(value)} if isinstance(value, str | Path) else value
