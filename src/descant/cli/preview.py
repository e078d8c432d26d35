"""``descant preview``: a recipe up to its first training, which it prints in place of running it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

from descant.cli.run import errors_as_exit_codes, prepare_recipe
from descant.runner.preview_scope import PreviewEnd, num_previewed


def preview_recipe(
    path: Path, file: Path | None, settings: Sequence[str], name: str | None, run_dir: Path | None, num_samples: int
) -> None:
    """Preview a recipe: see the options of the command. What it writes to its run directory before is not kept."""
    recipe, ctx = prepare_recipe(path, file, settings, name, run_dir)
    with tempfile.TemporaryDirectory(prefix="descant-preview-") as directory:
        ctx.run_in(Path(directory))
        is_refused, token = False, num_previewed.set(num_samples)
        try:
            with errors_as_exit_codes(path, is_running=True):
                recipe.run(ctx)
            print("the recipe has ended without a trainer or callbacks of descant: there was nothing to preview")
        except* PreviewEnd as ends:  # of the recipe, or of one of its tasks
            is_refused = ends.subgroup(lambda end: isinstance(end, PreviewEnd) and end.is_refused) is not None
        finally:
            num_previewed.reset(token)
    if is_refused:
        raise typer.Exit(1)
