"""``descant run``: a recipe with its config; its end as an exit code."""

from __future__ import annotations

import inspect
import shutil
import sys
import traceback
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import typer

from descant.errors import ConfigurationError
from descant.recipes.config_values import read_input
from descant.recipes.context import RecipeContext
from descant.recipes.field_help import field_lines
from descant.recipes.recipe import Recipe, load_recipe
from descant.runner.page import Page
from descant.text import printable

_LONGEST_LINE = 2000  # of a traceback; an error may quote a whole page of a server


def run_recipe(path: Path, file: Path | None, settings: Sequence[str], name: str | None, run_dir: Path | None) -> None:
    """Run a recipe: see the options of the command."""
    recipe, ctx = prepare_recipe(path, file, settings, name, run_dir)
    with errors_as_exit_codes(path, is_running=True):
        recipe.run(ctx)


def prepare_recipe(
    path: Path, file: Path | None, settings: Sequence[str], name: str | None, run_dir: Path | None
) -> tuple[Recipe, RecipeContext]:
    """A recipe with what it is run with; what cannot be started ends the command."""
    with errors_as_exit_codes(path):
        recipe = load_recipe(path)
        config_class = recipe.config_class
        if config_class is None and (file or settings):
            raise ConfigurationError(f"recipe {path} takes no config: leave out --config and --set")
        config = None if config_class is None else read_input(config_class, file, settings)
        if run_dir is not None and (run_dir / "run.sqlite").exists():
            raise ConfigurationError(f"--run-dir {run_dir} already holds a run; choose another one")
        if run_dir is not None and run_dir.exists() and not run_dir.is_dir():
            raise ConfigurationError(f"--run-dir {run_dir} is a file; name a directory")
        return recipe, recipe.context_class(name=name, recipe_name=recipe.name, config=config, run_dir=run_dir)


def recipe_help(path: Path) -> None:
    """Print what a recipe does and the keys of its config."""
    with errors_as_exit_codes(path):
        recipe = load_recipe(path)
    Page().out("\n".join(printable(line) for line in _help_lines(recipe)), highlight=False)


@contextmanager
def errors_as_exit_codes(path: Path, *, is_running: bool = False) -> Iterator[None]:
    """The end of a recipe as an exit code: see the command."""
    try:
        yield
    except KeyboardInterrupt:
        _say("interrupted")
        raise typer.Exit(130) from None
    except (Exception, CancelledError) as error:
        if isinstance(error, ConfigurationError) and not is_running:
            _say(str(error))
            raise typer.Exit(2) from None
        _show_traceback(error, path)
        raise typer.Exit(1) from None


def _help_lines(recipe: Recipe) -> Iterator[str]:
    takes = "" if recipe.config_class is None else " [--config FILE] [--set KEY=VALUE]..."
    yield f"Usage: descant run {recipe.path}{takes} [--name NAME] [--run-dir DIR]"
    module = sys.modules[recipe.function.__module__]
    about = inspect.getdoc(recipe.function) or inspect.getdoc(module) or ""
    yield from ("", *(f"  {line}" for line in about.splitlines())) if about else ()
    yield ""
    if recipe.config_class is None:
        yield "It takes no config."
        return
    yield "Config, as keys of a TOML, JSON or YAML file or with --set KEY=VALUE:"
    yield from field_lines(recipe.config_class, shutil.get_terminal_size().columns)


def _show_traceback(error: BaseException, path: Path) -> None:
    """Print the traceback and those of its causes, without the frames before the recipe's own first one."""
    directory = (path if path.is_dir() else path.parent).resolve()
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        link.with_traceback(_own_part(link.__traceback__, directory) or link.__traceback__)
    for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
        print(printable(line, _LONGEST_LINE), file=sys.stderr)


def _own_part(trace: TracebackType | None, directory: Path) -> TracebackType | None:
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith("<") and Path(filename).resolve().parent == directory:  # <frozen importlib>
            break
        trace = trace.tb_next
    return trace


def _say(message: str) -> None:
    first, *others = message.split("\n")
    for line in (f"descant: {first}", *others):
        print(printable(line), file=sys.stderr)
