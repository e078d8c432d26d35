"""The command ``descant`` and its options. It imports neither torch nor transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from descant import __version__
from descant.cli.compare import comparison, comparison_lines
from descant.cli.json_output import json_text
from descant.cli.new import write_recipe
from descant.cli.runs import foreign_content_as_error, run_list, run_list_lines, short_lines
from descant.cli.samples import Selection
from descant.cli.show import ShowOptions, show_run
from descant.cli.show_json import run_as_json
from descant.cli.sync import sync_lines
from descant.errors import ConfigurationError, DescantError
from descant.runlog.run_reader import RunReader, find_runs
from descant.runner.page import Page, silence_output
from descant.text import printable

_RUNS = Path("runs")
_WHEN = re.compile(r"-\d{8}-\d{6}(-\d+)?$")
"""What descant puts behind the name of a run."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
new = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(new, name="new", help="Write files to begin with.")


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
    """Post-training for language models: run recipes, and look at what runs have measured.

    \b
    Examples:
      descant new recipe my_sft
      descant run my_sft.py --config my_sft.toml --set lr=1e-4 --name try
      descant runs --sort validation/loss
      descant runs compare try-20261123-131637 try-20261123-140209
      descant show runs/sft-20261123-131637 --prompt "25+60="
      descant sync sft-20261123-131637 --to trackio
    """


@app.command(add_help_option=False)
def run(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="A Python file, or a directory with main.py.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="The recipe's config: TOML, JSON, or YAML with PyYAML."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set one key, over the file; nested.key=value too. Repeatable."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The run's name; by default the recipe's.")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The directory of the run; by default runs/NAME-<date>-<time>."),
    ] = None,
    show_help: Annotated[
        bool, typer.Option("--help", help="Show this message; with RECIPE, the keys of its config.")
    ] = False,
) -> None:
    """Run a recipe: the function under @recipe_main in a Python file.

    The exit code is 0, or 1 if the recipe failed, 2 if it cannot be started (its file, its config, the options), 130
    after Ctrl-C.

    \b
    Examples:
      descant run my_sft.py --help
      descant run my_sft.py --config my_sft.toml --set lr=1e-4 --name try
    """
    if recipe is None:
        if not show_help:
            raise typer.BadParameter("missing: which recipe? descant new recipe NAME writes one", param_hint="RECIPE")
        typer.echo(context.get_help())
        return
    from descant.cli.run import recipe_help, run_recipe  # noqa: PLC0415  # pydantic, for this command only

    if show_help:
        recipe_help(recipe)
    else:
        run_recipe(recipe, config, settings or [], name, run_dir)


@app.command()
def preview(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A Python file, or a directory with main.py.", show_default=False)
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The recipe's config, as for run.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key, as for run. Repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="As for run.")] = None,
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="As for run; nothing is written to it.")] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Threads to show.")] = 3,
) -> None:
    """Show what a recipe would train, without training: its threads with the trained tokens marked, their lengths,
    what would be cut or refused, steps and callbacks.

    The recipe is run up to its first trainer, with its model and data, and ends there; a recipe that trains with
    another library is run up to its callbacks. The exit code is that of run: 1 if training would be refused.

    \b
    Example:
      descant preview my_sft.py --config my_sft.toml --set max_length=512
    """
    from descant.cli.preview import preview_recipe  # noqa: PLC0415  # pydantic, for this command only

    preview_recipe(recipe, config, settings or [], name, run_dir, samples)


@new.command("recipe")
def new_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name; NAME.py and NAME.toml are written.")],
) -> None:
    """Write a recipe for supervised fine-tuning, with its config. Nothing is overwritten.

    \b
    Example:
      descant new recipe my_sft
    """
    with _errors_as_lines():
        recipe, config = write_recipe(name)
        typer.echo(f"wrote {recipe} and {config}\nname your model and data in {config}, then:")
        typer.echo(f"  descant preview {recipe} --config {config}")
        typer.echo(f"  descant run {recipe} --config {config}")


@app.command()
def runs(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR | compare A B",
            help="The directory to list (runs), or two runs to compare: directories, or names under runs/.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="TEXT|KEY=VALUE",
            help="Only runs whose name, trainer, outcome or title contains this, or with this setting. Repeatable.",
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="METRIC", help="By the last value of this metric, lowest first.")
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="With --sort: highest first.")] = False,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A metric to show. Repeatable; by default headline ones.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document, with all settings, for programs.")
    ] = False,
) -> None:
    """List runs, newest first, finished or not; or compare two.

    \b
    Examples:
      descant runs --filter outcome=completed --filter lr=1e-4 --sort validation/loss
      descant runs other/runs --metric training/grad_norm
      descant runs compare sft-20261123-131637 sft-20261123-140209
      descant runs compare baseline higher-lr
      descant runs --json | jq '.runs[] | [.settings.lr, .metrics["validation/loss"]]'
    """
    with _errors_as_lines():
        page = Page()
        if what and what[0] == "compare":
            if len(what) != 3:
                raise typer.BadParameter("compare takes two runs", param_hint="compare A B")
            if filters or sort or descending or metric:
                message = "these options are for lists; compare shows everything, and takes --json"
                raise typer.BadParameter(message, param_hint="compare A B")
            first, second = (_find(Path(run)) for run in what[1:])
            with RunReader(first) as a, RunReader(second) as b, foreign_content_as_error(a, b):
                if as_json:
                    return page.out(json_text(comparison(a, b)), highlight=False)
                page.section("", list(comparison_lines(a, b, page.width)))
            return None
        if what and len(what) > 1:
            raise typer.BadParameter(f"one directory, not {len(what)}; or: compare A B", param_hint="DIR")
        if descending and sort is None:
            raise typer.BadParameter("say by which metric: --sort METRIC --descending", param_hint="--descending")
        directory = Path(what[0]) if what else _RUNS
        choice: Any = {"filters": filters or (), "sort": sort, "descending": descending, "metrics": metric or ()}
        if as_json:
            document = {"directory": str(directory), "runs": run_list(directory, **choice)}
            return page.out(json_text(document), highlight=False)
        page.section("", list(run_list_lines(directory, page.width, **choice)))
    return None


class _ShowCommand(TyperCommand):
    """A command whose option ``--samples`` may come without its number, which typer does not have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``--samples`` without a number is an option of its own."""
        pairs = zip(args, [*args[1:], ""], strict=False)
        alone = [name == "--samples" and not number.lstrip("-").isdecimal() for name, number in pairs]
        given = ["--samples-alone" if is_alone else argument for argument, is_alone in zip(args, alone, strict=True)]
        return super().parse_args(ctx, given)


@app.command(cls=_ShowCommand)
def show(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="A run's directory, or its name under runs/; by default the one under runs/ that was last written.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="[N]",
            help="Rows of each table of samples; by default 4; 0 for none. Without a number: only samples.",
        ),
    ] = None,
    samples_alone: Annotated[bool, typer.Option("--samples-alone", hidden=True)] = False,
    full: Annotated[bool, typer.Option("--full", help="Only samples, each whole: texts, reasoning, error.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only samples that failed to generate or grade.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Only samples, the lowest grades first.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only answers that changed from the first to the latest evaluation.")
    ] = False,
    step: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Only samples of the evaluation at this step. With --changed: from this step. Repeatable."
        ),
    ] = None,
    callback: Annotated[str | None, typer.Option(metavar="NAME", help="Samples of this callback only.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_TEXT", help="Follow this prompt: a part of its text, or of its example id."),
    ] = None,
    failures: Annotated[bool, typer.Option(help="Failures with their tracebacks, or one line each.")] = True,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Only metrics, those whose key contains this, or matches it, with * and ?."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show a run, finished or not: curves, costs, samples, one prompt across the run, warnings, failures.

    Nothing in the run's directory is changed. Output is plain and 80 columns wide when it is piped; the variable
    COLUMNS sets another width.

    \b
    Examples:
      descant show runs/sft-20261123-131637 --keys "validation/*" --prompt "25+60="
      descant show --samples 20 --worst --full
      descant show --changed --callback validation
    """
    flags: dict[Selection, bool] = {"failed": failed, "worst": worst, "changed": changed}
    selections = [name for name, is_wanted in flags.items() if is_wanted]
    if len(selections) > 1:
        raise typer.BadParameter(f"it does not go with --{selections[0]}", param_hint=f"--{selections[1]}")
    options = ShowOptions(
        num_samples=samples,
        samples_alone=samples_alone,
        callback=callback,
        prompt=prompt,
        selection=selections[0] if selections else "all",
        steps=step or (),
        in_full=full,
        failures=failures,
        keys=keys,
    )
    if samples == 0 and options.has_samples_alone:
        raise typer.BadParameter("0 is no samples, and another option asks for some", param_hint="--samples")
    with _errors_as_lines(), RunReader(_find(run)) as reader:
        if as_json:
            Page().out(run_as_json(reader, options), highlight=False)
        else:
            show_run(reader, options)


@app.command()
def sync(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's directory, or its name under runs/.", show_default=False),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="TRACKER", help="wandb, mlflow, tensorboard or trackio.", show_default=False)
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="From the first record on, also those that the tracker has.")
    ] = False,
) -> None:
    """Deliver a run that has ended, or was killed, to a tracker: the records that it lacks, or all.

    The tracker is found as the run recorded it, and by WANDB_API_KEY, MLFLOW_TRACKING_URI or TENSORBOARD_LOGGING_DIR.

    \b
    Examples:
      descant sync runs/sft-20261123-131637 --to trackio
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 descant sync sft-20261123-131637 --to mlflow
    """
    with _errors_as_lines():
        page = Page()
        for line in sync_lines(_find(run), to, everything=everything):
            page.out(printable(line), highlight=False)


@contextmanager
def _errors_as_lines() -> Iterator[None]:
    """Errors are a line on standard error, or some, and the exit code 1."""
    try:
        yield
    except (DescantError, OSError) as error:
        if isinstance(error, OSError):  # the disk is full, say; a closed pipe is Page's
            silence_output()
        first, *others = map(printable, str(error).split("\n"))
        typer.echo("\n".join([f"descant: {first}", *others]), err=True)
        raise typer.Exit(1) from None


def _find(run: Path | None) -> Path:
    """The directory of a run that is named by it, by its name under ``runs/``, by the name that it was given, or by the
    beginning of its name, if that is the beginning of one only."""
    if run is None:
        if runs := find_runs(_RUNS):
            return runs[0]
        raise ConfigurationError("there are no runs under runs/ here; name the directory of a run: descant show RUN")
    is_run = run.is_file() or (run / "run.sqlite").is_file()
    if run.parent != Path() or is_run or not _RUNS.is_dir():
        return run
    if (_RUNS / run).exists():
        return _RUNS / run
    paths = find_runs(_RUNS)
    named = [path for path in paths if _WHEN.sub("", path.name) == run.name]
    begun = [path for path in paths if path.name.startswith(run.name)]
    if len(named or begun) == 1:
        return (named or begun)[0]
    if named or begun:
        what = "are named" if named else "have names that begin with"
        raise ConfigurationError(
            f"{len(named or begun)} runs under {_RUNS}/ {what} {run.name}; give the whole name of one:\n"
            + "\n".join(line.plain for line in short_lines(named or begun))
        )
    return run if run.exists() else _RUNS / run
