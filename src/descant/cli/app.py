"""The command ``descant``: what it accepts. It imports neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from descant import __version__
from descant.cli.show import ShowOptions, show_run
from descant.errors import ConfigurationError, DescantError
from descant.loggers.run_reader import RunReader, find_runs
from descant.loggers.text import printable

_RUNS = Path("runs")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"descant {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Post-training for language models: look at what a run has measured.

    \b
    Example:
      descant show runs/sft-20261123-131637 --prompt "25+60="
    """


@app.command()
def show(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="A run's directory, or its name under runs/; by default the one under runs/ that was last written.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Rows of each table of samples; 0 for none.")] = 4,
    callback: Annotated[str | None, typer.Option(metavar="NAME", help="Samples of this callback only.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_TEXT", help="Follow this prompt: a part of its text, or of its example id."),
    ] = None,
    failures: Annotated[bool, typer.Option(help="Failures with their tracebacks, or one line each.")] = True,
    keys: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Metrics whose key contains this, or matches it, with * and ?."),
    ] = None,
) -> None:
    """Show a run, finished or not: curves, costs, samples, one prompt across the run, warnings, failures.

    Nothing in the run's directory is changed. Output is plain and 80 columns wide when it is piped; the variable
    COLUMNS sets another width.

    \b
    Example:
      descant show runs/sft-20261123-131637 --keys "validation/*" --prompt "25+60="
    """
    options = ShowOptions(num_samples=samples, callback=callback, prompt=prompt, failures=failures, keys=keys)
    try:
        with RunReader(_find(run)) as reader:
            show_run(reader, options)
    except DescantError as error:
        typer.echo(f"descant: {printable(str(error))}", err=True)
        raise typer.Exit(1) from None


def _find(run: Path | None) -> Path:
    """The run that is meant."""
    if run is None:
        if runs := find_runs(_RUNS):
            return runs[0]
        raise ConfigurationError("there are no runs under runs/ here; name the directory of a run: descant show RUN")
    is_name = run.parent == Path() and not run.exists() and _RUNS.is_dir()
    return _RUNS / run if is_name else run
