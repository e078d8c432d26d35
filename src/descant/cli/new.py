"""``descant new``: writes a recipe from the template."""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from sys import stdlib_module_names
from sysconfig import get_path

from descant.errors import ConfigurationError

_STANDS_FOR_THE_NAME = "RECIPE_NAME"


def write_recipe(name: str) -> list[Path]:
    """Write ``NAME.py`` and ``NAME.toml``, a recipe for supervised fine-tuning that runs as it is.

    Args:
        name: the recipe's name, or a path to it; ``.py`` may stand behind it.

    Raises:
        ConfigurationError: it is not a name that Python can import, or another module's, or a file is there already;
            nothing is written.
    """
    recipe = Path(name.removesuffix(".py"))
    if not recipe.name.isidentifier() or iskeyword(recipe.name):
        raise ConfigurationError(f"{name!r} cannot be a recipe's name: letters, digits and _, such as my_recipe")
    if _is_taken(recipe.name):
        raise ConfigurationError(
            f"{name!r} is the name of a library, which could not be imported beside it; choose another one, such as "
            f"my_{recipe.name}"
        )
    texts = {recipe.with_name(f"{recipe.name}.{suffix}"): _template(suffix) for suffix in ("py", "toml")}
    if there := [str(path) for path in texts if path.exists()]:
        raise ConfigurationError(f"{' and '.join(there)} would be overwritten; choose another name")
    try:
        recipe.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text.replace(_STANDS_FOR_THE_NAME, recipe.name))
    except OSError as error:
        raise ConfigurationError(f"cannot write {recipe}: {error}") from error
    return list(texts)


def _is_taken(name: str) -> bool:
    """Whether Python or an installed package has a module of the name."""
    installed = [get_path("purelib"), get_path("platlib")]
    return name in (*stdlib_module_names, "descant") or PathFinder.find_spec(name, installed) is not None


def _template(suffix: str) -> str:
    return (files("descant.recipes") / f"template.{suffix}").read_text(encoding="utf-8")
