"""``descant new``: writes a recipe from the template."""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from sys import stdlib_module_names
from sysconfig import get_path

from descant.errors import ConfigurationError


def write_recipe(name: str) -> list[Path]:
    """Write ``NAME.py`` and ``NAME.toml``, a recipe for supervised fine-tuning; the name may be a path."""
    recipe = Path(name.removesuffix(".py"))
    if not recipe.name.isidentifier() or iskeyword(recipe.name):
        raise ConfigurationError(f"{name!r} cannot be a recipe's name: letters, digits and _, such as my_recipe")
    installed = [get_path("purelib"), get_path("platlib")]
    if recipe.name in (*stdlib_module_names, "descant") or PathFinder.find_spec(recipe.name, installed):
        raise ConfigurationError(
            f"{name!r} is the name of a library, which could not be imported beside it; choose another one, such as "
            f"my_{recipe.name}"
        )
    template = files("descant.recipes")
    texts = {
        recipe.with_name(f"{recipe.name}.{suffix}"): (template / f"template.{suffix}").read_text(encoding="utf-8")
        for suffix in ("py", "toml")
    }
    if there := [str(path) for path in texts if path.exists()]:
        raise ConfigurationError(f"{' and '.join(there)} would be overwritten; choose another name")
    try:
        recipe.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text.replace("RECIPE_NAME", recipe.name))
    except OSError as error:
        raise ConfigurationError(f"cannot write {recipe}: {error}") from error
    return list(texts)
