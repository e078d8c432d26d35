"""RecipeContext: the run that a recipe belongs to."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from contextvars import Token
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from descant.errors import ConfigurationError
from descant.notifiers import JobNotifier, StdoutJobNotifier
from descant.provenance import recipe_of_run, remember_secrets
from descant.recipes.config import InputConfig
from descant.runner.preview_scope import num_previewed
from descant.runner.recorder import default_run_dir, unused_run_dir
from descant.text import printable


class RecipeContext:
    """What a recipe knows of its run: name, directory, config, seed, job to report progress to.

    ``descant run`` makes one. In a notebook: ``async with RecipeContext(name="try") as ctx: await main(ctx, config)``
    (``with`` works, too). While it is open, every run log that is written records the recipe and its config.

    Args:
        name: of the run; by default the recipe's name.
        recipe_name: of the recipe.
        config: the recipe's config.
        run_dir: the directory of the run, for ``run_dir=`` of a trainer; by default ``runs/<name>-<date>-<time>``,
            which is made when it is opened, with a number behind it if another run has it, and removed at its end if
            nothing is in it.
        seed: for ``seed=`` of a trainer; by default the config's field ``seed``, or 0.
        job: receives progress; by default it is printed.

    Raises:
        ConfigurationError: a name that is not the name of a directory.
    """

    def __init__(
        self,
        name: str | None = None,
        recipe_name: str = "recipe",
        config: InputConfig | None = None,
        run_dir: str | Path | None = None,
        seed: int | None = None,
        job: JobNotifier | None = None,
    ) -> None:
        self.name = recipe_name if name is None else name
        self.recipe_name = recipe_name
        self.config = config
        if not self.name.strip() or Path(self.name).name != self.name or self.name == "..":
            raise ConfigurationError(f"name={self.name!r} must be the name of a run, without directories; see run_dir")
        self._makes_run_dir = run_dir is None
        self.run_dir = Path(run_dir or default_run_dir(self.name)).absolute()
        configured = getattr(config, "seed", 0)
        self.seed = seed if seed is not None else configured if isinstance(configured, int) else 0
        self.job = job or StdoutJobNotifier(self.name)
        self._token: Token[Mapping[str, Any] | None] | None = None

    def run_in(self, directory: Path) -> None:
        """Take a directory that is there for the run."""
        self.run_dir, self._makes_run_dir = directory, False

    def close(self, error: BaseException | None = None) -> None:
        """Report the end to the job, unless it is a preview; later calls do nothing."""
        token, self._token = self._token, None
        if token is None:
            return
        recipe_of_run.reset(token)
        if self._makes_run_dir:
            with suppress(OSError):  # something is in it
                self.run_dir.rmdir()
        if num_previewed.get() is not None:
            return
        if error is None:
            self.job.complete()
        else:
            self.job.report_error(printable(traceback.format_exception_only(error)[0].strip()))

    def __enter__(self) -> Self:
        if self._makes_run_dir:
            self.run_dir = unused_run_dir(self.run_dir)
        config = None
        if self.config is not None:
            remember_secrets(self.config.model_dump())
            config = self.config.model_dump(mode="json", fallback=repr)
        self._token = recipe_of_run.set({"name": self.recipe_name, "run_name": self.name, "config": config})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *raised: Any) -> None:
        self.__exit__(*raised)
