"""Recipe: a function in a Python file, how it is found and how it is run."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from descant.errors import ConfigurationError
from descant.recipes.config import InputConfig
from descant.recipes.context import RecipeContext
from descant.text import did_you_mean

_MARK = "__recipe_main__"
_KINDS = {RecipeContext: "context", InputConfig: "config"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def recipe_main(function: _Function) -> _Function:
    """Mark the one function of a file that ``descant run`` calls; async or not. It can be called as before.

    It has at most two parameters, told apart by their annotations: a ``RecipeContext`` and an ``InputConfig``, or
    subclasses of theirs.

    >>> @recipe_main
    ... async def main(ctx: RecipeContext) -> None:
    ...     print(ctx.name)

    Raises:
        ConfigurationError: it is put on something that is not a function.
    """
    if not inspect.isfunction(function):
        raise ConfigurationError(f"@recipe_main belongs on a function, not on {function!r}")
    setattr(function, _MARK, True)
    return function


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that can be run: its file or directory, its function, and the class of each parameter by name."""

    path: Path
    function: Callable[..., Any]
    parameters: Mapping[str, type]

    @property
    def name(self) -> str:
        """The name of the file or directory."""
        return self.path.resolve().stem

    @property
    def config_class(self) -> type[InputConfig] | None:
        """The class of its config, if it has one."""
        return next((kind for kind in self.parameters.values() if issubclass(kind, InputConfig)), None)

    @property
    def context_class(self) -> type[RecipeContext]:
        """The class of its context."""
        return next((kind for kind in self.parameters.values() if issubclass(kind, RecipeContext)), RecipeContext)

    def run(self, ctx: RecipeContext) -> Any:
        """Call the function with its context and that context's config, wait for it, and return what it returns."""
        arguments = {
            name: ctx if issubclass(kind, RecipeContext) else ctx.config for name, kind in self.parameters.items()
        }
        with ctx:
            result = self.function(**arguments)
            return asyncio.run(result) if inspect.iscoroutine(result) else result


def load_recipe(path: Path) -> Recipe:
    """Import a recipe: a Python file, or a directory with ``main.py``. Its directory becomes importable.

    What the file raises when it is imported is raised as it is; a recipe that cannot work is a ``ConfigurationError``.
    """
    file = path / "main.py" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise ConfigurationError(f"the directory {path} has no main.py: it is not a recipe")
    if not file.is_file():
        there = [other.name for other in path.parent.glob("*.py")]
        hint = did_you_mean(path.name, there, f"the working directory is {Path.cwd()}")
        raise ConfigurationError(f"there is no recipe {path}; {hint}")
    if file.suffix != ".py":
        raise ConfigurationError(f"recipe {path}: the name must end in .py, or be a directory with main.py")
    try:
        module = _import(file)
    except SyntaxError as error:
        if error.filename != str(file.resolve()):  # of a module that it imports
            raise
        raise ConfigurationError(f"recipe {file}, line {error.lineno}, column {error.offset}: {error.msg}") from None
    function = _find_main(file, module)
    return Recipe(path, function, _match_parameters(file, function))


def _import(file: Path) -> ModuleType:
    """The module of a file, under its own name, so that other modules of the recipe can import it."""
    directory = file.resolve().parent
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    if (directory / "__init__.py").is_file():  # a package: its modules may import each other relatively
        sys.path.insert(1, str(directory.parent))
        return importlib.import_module(f"{directory.name}.{file.stem}")
    is_taken = file.stem in sys.modules or file.stem in sys.stdlib_module_names or not file.stem.isidentifier()
    name = f"recipe {file.stem}" if is_taken else file.stem
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_main(file: Path, module: ModuleType) -> Callable[..., Any]:
    marked = {
        id(value): value for value in vars(module).values() if inspect.isfunction(value) and hasattr(value, _MARK)
    }
    found = [function for function in marked.values() if function.__module__ == module.__name__] or [*marked.values()]
    if not found:
        raise ConfigurationError(f"recipe {file} has no function under @recipe_main (from descant.recipes)")
    if len(found) > 1:
        names = ", ".join(f"{function.__name__} (line {_line(function)})" for function in found)
        raise ConfigurationError(f"recipe {file} has {len(found)} functions under @recipe_main: {names}; keep one")
    if inspect.isgeneratorfunction(found[0]) or inspect.isasyncgenfunction(found[0]):
        raise ConfigurationError(
            f"recipe {file}, line {_line(found[0])}: {found[0].__name__} has a yield, so calling it would run nothing"
        )
    return found[0]


def _match_parameters(file: Path, function: Callable[..., Any]) -> dict[str, type]:
    main = f"recipe {file}, line {_line(function)}: {function.__name__}"
    allowed = "it has at most two, one annotated with a RecipeContext and one with an InputConfig"
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # annotations are code
        raise ConfigurationError(f"{main}: its annotations cannot be resolved: {error}") from error
    matched: dict[str, type] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigurationError(f"{main}: the parameter {parameter} cannot be given by name; {allowed}")
        hint = hints.get(name)
        kind = next((base for base in _KINDS if isinstance(hint, type) and issubclass(hint, base)), None)
        if kind is None:
            shown = "has no annotation" if hint is None else f"is annotated with {hint!r}"
            raise ConfigurationError(f"{main}: the parameter {name!r} {shown}; {allowed}")
        if any(issubclass(other, kind) for other in matched.values()):
            raise ConfigurationError(f"{main}: {name!r} is a second {_KINDS[kind]}; {allowed}")
        if isinstance(parameter.default, InputConfig):
            raise ConfigurationError(
                f"{main}: the default of {name!r} would not be used; give the class these defaults"
            )
        matched[name] = typing.cast("type", hint)
    return matched


def _line(function: Callable[..., Any]) -> int:
    return int(inspect.unwrap(function).__code__.co_firstlineno)
