"""``descant show``: what people read about a run."""

import contextlib
import math
import os
import re
import sqlite3
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from descant import Table, __version__
from descant.cli.app import app
from descant.cli.curves import sparkline
from descant.cli.grid import fit
from descant.metrics import as_metric
from descant.runlog.run_log import RunLog

ATTACK = "\x1b[2J\x1b]0;owned\x07[bold red]markup[/] \u202egnp.exe\u202c \x9b31m\r\n:smile: \ud800"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
METRICS = [
    {"key": "validation/score", "unit": "points", "better": "higher", "headline": True},
    {"key": "training/*", "unit": "nats", "better": "lower", "headline": False},
]
COMMAND = [sys.executable, "-c", "from descant.cli.app import app; app(prog_name='descant')"]


def show(*arguments, **environment):
    """What the command prints, for a run that it can show."""
    done = invoke(*arguments, **environment)
    assert done.exit_code == 0, done.stderr or done.exception
    assert done.stderr == ""
    return done.stdout


def invoke(*arguments, **environment):
    return CliRunner().invoke(app, ["show", *map(str, arguments)], env={"COLUMNS": "80", **environment})


def failure(*arguments):
    """The line on standard error."""
    done = invoke(*arguments)
    assert done.exit_code == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def section(output, title):
    """The lines of one part of the page."""
    lines = output.split(f"\n\n{title}\n")[1].split("\n\n")[0]
    return lines.rstrip("\n").split("\n")


async def write_run(run_dir, num_steps=20, *, outcome="completed"):
    """A run of two callbacks, each called every five steps; one of them fails each time."""
    log = RunLog(run_dir)
    callbacks = [{"name": "answers", "prefix": "validation"}, {"name": "broken", "prefix": None}]
    model = {"name": "policy", "description": "Tiny, cpu"}
    config = {"trainer": "SFT", "seed": 3, "model": model, "dataset": {"num_samples": 1280}, "num_steps": num_steps}
    await log.log_config({**config, "callbacks": callbacks, "metrics": METRICS})
    await log.log_event(0, "run_started", "trainer", "SFT: policy")
    await log.log_event(0, "callback_note", "answers", "answers: 2 of 2 threads end in a completion")
    await log.log_event(0, "callback_warning", "answers", "answers: a reference cannot be rendered")
    for step in range(num_steps + 1):
        if step:
            await log.log_metrics(step, {"training/loss": 2.0 - step / num_steps, "progress/step": step})
        if step % 5 == 0:
            await log_evaluation(log, step, num_steps)
    if outcome:
        await log.log_event(num_steps, f"run_{outcome}", "trainer", f"{outcome} after all")
    await log.close()
    return run_dir


async def log_evaluation(log, step, num_steps):
    metrics = {"validation/score": step / num_steps, "validation/phase": f"phase {step}", "validation/constant": 7}
    num_runs = step // 5 + 1
    for name, stall_s, num_failed in (("answers", 0.25, 0), ("broken", 2.0, num_runs)):
        costs = {"stall_s": stall_s, "num_runs": num_runs, "total_s": stall_s * num_runs, "num_failed": num_failed}
        metrics |= {f"callbacks/{name}/{key}": value for key, value in costs.items()}
    await log.log_metrics(step, metrics)
    columns = ["prompt", "response", "example_id", "reference", "grade", "error"]
    rows = [
        ["1+1=", f"answer {step}", "id-one", "2", step / num_steps, None],
        ["2+2=", None, "id-two", "4", None, "no"],
    ]
    await log.log_metrics(step, {"validation/samples": Table(columns, rows)}, "answers")
    traceback = f'Traceback (most recent call last):\n  File "train.py", line 7, in callback\nValueError: at {step}'
    await log.log_event(step, "callback_failed", "broken", f"callback 'broken' failed at step {step}", traceback)


@pytest.fixture
async def run(tmp_path):
    return await write_run(tmp_path / "run")


def test_the_head_says_what_was_run_and_how_it_ended(run):
    first, second, third = show(run, COLUMNS="120").split("\n")[:3]
    assert first == "SFT · policy (Tiny, cpu) · 1,280 samples · seed 3"
    assert re.fullmatch(r"20 of 20 steps · completed in [\d.]+ m?s · started \d{4}-\d\d-\d\d \d\d:\d\d", second)
    assert third == str(run)


def test_every_metric_has_one_line_in_the_group_of_its_callback(run):
    assert section(show(run), "metrics") == [
        "                                  first   last  min   max",
        "training",
        "  loss      ███▇▇▆▆▆▅▅▄▄▃▃▃▂▂▁▁▁   1.95  1.025    1  1.95",  # the mean of the last two of 20
        "validation (from answers)",
        "  score     ▁▃▅▇█                     0      1    0     1",
        "  constant  ▁▁▁▁▁                     7      7    7     7",
        "  phase     phase 20",
    ]


def test_units_are_shown_where_there_is_room(run):
    rows = {line.split()[0]: line.split()[-1] for line in section(show(run, COLUMNS="100"), "metrics") if line}
    assert (rows["loss"], rows["score"], rows["constant"]) == ("nats", "points", "7")


def test_costs_are_those_that_the_runner_recorded_last(run):
    lines = section(show(run), "callbacks")
    assert lines[0].split() == ["callback", "runs", "failed", "s", "per", "run", "total", "s", "of", "the", "run"]
    assert lines[1].split()[:5] == ["answers", "5", "0", "0.25", "1.25"]
    assert lines[2].split()[:5] == ["broken", "5", "5", "2", "10"]


async def test_the_share_of_the_run_is_the_runners(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2):
        await log.log_metrics(step, {"callbacks/a/b/stall_s": 1.0, "callbacks/a/b/num_runs": 3 * step})
        await log.log_metrics(step, {"callbacks/a/b/total_s": 12.0 * step, "callbacks/a/b/time_fraction": 0.25})
    await log.close()
    assert section(show(tmp_path), "callbacks")[1].split() == ["a/b", "6", "0", "4", "24", "25.0%"]


async def test_asynchronous_calls_and_calls_that_were_not_made_have_columns(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2):
        await log.log_metrics(step, {"callbacks/a/stall_s": 0.5, "callbacks/a/busy_s": 2.0 * step})
        await log.log_metrics(step, {"callbacks/b/stall_s": 1.0, "callbacks/b/num_skipped": step})
    await log.close()
    header, *rows = section(show(tmp_path), "callbacks")
    assert header.split()[-4:] == ["run", "s", "async", "skipped"]
    assert [row.split()[0] for row in rows] == ["a", "b"]
    assert rows[0].split()[-1] == "3"
    assert rows[1].split()[-1] == "2"


def test_the_latest_samples_and_the_first_prompt_across_the_run(run):
    output = show(run)
    assert section(output, "latest samples") == [
        "answers at step 20, 2 rows",
        "  prompt  response   reference  grade  error",
        "  1+1=    answer 20  2              1",
        "  2+2=               4                 no",
    ]
    assert section(output, "the same prompt across the run") == [
        "answers: 1+1=",
        "  reference: 2",
        "  step  response   grade",
        "     0  answer 0       0",
        "     5  answer 5    0.25",
        "    10  answer 10    0.5",
        "    15  answer 15   0.75",
        "    20  answer 20      1",
    ]
    assert "2+2=" not in show(run, "--samples", 1)
    assert "latest samples" not in show(run, "--samples", 0)


def test_a_prompt_is_found_by_text_and_by_id(run):
    for wanted in ("2+2", "id-two", "id-t"):
        lines = section(show(run, "--prompt", wanted), "the same prompt across the run")
        assert lines[:3] == ["answers: 2+2=", "  reference: 4", "  step  error"]
    lines = section(show(run, "--prompt", "="), "the same prompt across the run")
    assert lines[0] == "answers: 1+1="
    assert lines[-1] == "  the first of 2 prompts that contain this; others: id-two"
    assert "no prompt contains '3+3='" in failure(run, "--prompt", "3+3=")


async def test_many_evaluations_are_thinned_out_unless_the_prompt_is_asked_for(tmp_path):
    run = await write_run(tmp_path / "run", 500)
    lines = section(show(run), "the same prompt across the run")
    steps = [int(line.split()[0]) for line in lines[3:-1]]
    assert (len(steps), steps[0], steps[-1]) == (12, 0, 500)
    assert lines[-1] == "  12 of 101 steps; --prompt id-one shows all"
    assert len(section(show(run, "--prompt", "id-one"), "the same prompt across the run")) == 3 + 101


def test_notes_and_warnings_have_a_line_and_failures_a_traceback_with_a_count(run):
    output = show(run)
    assert section(output, "notes") == ["  step 0  answers: 2 of 2 threads end in a completion"]
    assert section(output, "warnings") == ["  step 0  answers: a reference cannot be rendered"]
    head = "  step 0  callback 'broken' failed at step 0 (5 times, the last at step 20)"
    assert section(output, "failures") == [
        head,
        "    Traceback (most recent call last):",
        '      File "train.py", line 7, in callback',
        "    ValueError: at 0",
    ]
    assert section(show(run, "--no-failures"), "failures") == [head]


async def test_failures_that_differ_are_all_shown_in_order(tmp_path):
    log = RunLog(tmp_path)
    for line, reason in ((7, "one"), (8, "one"), (7, "two"), (7, "one")):
        details = (
            f'Traceback (most recent call last):\n  File "train.py", line {line}, in callback\nValueError: {reason}'
        )
        await log.log_event(line, "callback_warning", "grader", f"a grader failed: {reason}", details)
    await log.log_event(9, "run_failed", "trainer", "failed after 9 steps", "Traceback: last")
    await log.close()
    shown = [line for line in section(show(tmp_path), "failures") if line.startswith("  step")]
    assert shown == [
        "  step 7  a grader failed: one (2 times, the last at step 7)",
        "  step 8  a grader failed: one",
        "  step 7  a grader failed: two",
        "  step 9  failed after 9 steps",
    ]


@pytest.mark.parametrize("options", [[], ["--prompt", "markup"]])
@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
async def test_text_of_models_and_data_is_shown_and_not_obeyed(tmp_path, options, environment):
    clean = as_metric(ATTACK)
    log = RunLog(tmp_path)
    await log.log_config(
        {"trainer": ATTACK, "model": {"name": ATTACK}, "callbacks": [{"name": clean, "prefix": clean}]}
    )
    await log.log_metrics(1, {f"{clean}/{clean}": clean, f"callbacks/{clean}/stall_s": 1.0, clean: 1.0})
    await log.log_metrics(1, {clean: Table(["prompt", "response", clean], [[clean, clean, clean]])}, clean)
    await log.log_metrics(1, {"other": Table([clean], [[clean]])}, clean)
    await log.log_event(1, "callback_warning", clean, ATTACK)
    await log.log_event(1, "callback_failed", clean, ATTACK, f"Traceback\n  {ATTACK}")
    await log.close()
    output = show(tmp_path, *options, **environment)
    own = re.sub(r"\x1b\[[\d;]*m", "", output)  # the styles of the page itself
    assert not {character for character in own if unicodedata.category(character)[0] == "C"} - {"\n"}
    assert "\\x1b[2J\\x1b]0;owned\\x07[bold red]markup[/] \\u202egnp.exe" in own
    assert ":smile:" in own
    assert ("\x1b[" in output) == bool(environment)


async def test_nothing_is_wider_than_the_terminal_but_messages(tmp_path):
    log = RunLog(tmp_path / ("long" * 10))
    wide = "長い答え" * 200
    await log.log_config({"trainer": "SFT", "callbacks": [{"name": wide, "prefix": "p" * 300}]})
    for step in range(200):
        await log.log_metrics(step, {f"{'p' * 300}/{'k' * 300}": 1e-5 * step, f"training/{wide}": 1.0, "t": wide})
    await log.log_metrics(5, {"t": Table(["prompt", "response", "grade"], [[wide, wide, wide], ["a", "b", 0.5]])}, wide)
    await log.close()
    for width in (60, 80, 132):
        output = show(log.path.parent, "--samples", 9, COLUMNS=str(width))
        page = output.replace(str(log.path.parent), "")
        assert max(map(cell_len, page.split("\n"))) <= width
        assert not [line for line in page.split("\n") if line != line.rstrip()]


async def test_steps_at_which_a_number_was_not_finite_are_marked(tmp_path):
    log = RunLog(tmp_path)
    for step in range(100_000):
        loss = math.nan if step == 50_000 else math.inf if step == 99_999 else 1.0 + step
        await log.log_metrics(step, {"training/loss": loss})
    await log.log_metrics(7, {"training/early": 1.0})
    await log.close()
    _, _, early, loss = section(show(tmp_path), "metrics")
    assert early.split() == ["early", "1", "at", "step", "7"]
    name, curve, *numbers = loss.split()
    assert curve.count("×") == 2
    assert curve[-1] == "×"
    assert curve[0] == "▁"
    assert [name, *numbers] == ["loss", "1", "inf", "1", "inf", "1", "NaN"]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", None])
async def test_a_run_that_did_not_complete_says_so(tmp_path, outcome):
    line = show(await write_run(tmp_path / "run", outcome=outcome), COLUMNS="200").split("\n")[1]
    if outcome:
        assert f"20 of 20 steps · {outcome} after " in line
    else:
        assert "20 of 20 steps · running or killed, after " in line


async def test_a_run_without_anything_is_shown(tmp_path):
    await RunLog(tmp_path).close()
    lines = show(tmp_path).split("\n")
    assert lines[0] == "a run whose settings were not recorded"
    assert lines[1].startswith("0 steps · running or killed, after 0.0 s · last written ")
    assert lines[2:] == [str(tmp_path), ""]


async def test_a_run_that_goes_on_is_shown(tmp_path):
    log = RunLog(tmp_path)
    await log.log_metrics(1, {"training/loss": 1.0})
    await log.flush()
    done = subprocess.run([*COMMAND, "show", tmp_path], capture_output=True, text=True, check=True)
    assert "  loss" in done.stdout
    await log.close()


def test_keys_are_chosen_by_a_part_or_by_a_pattern(run):
    assert [line.split()[0] for line in section(show(run, "--keys", "s"), "metrics")[1:]] != []
    for pattern in ("score", "validation/s*", "*/sc?re"):
        lines = section(show(run, "--keys", pattern), "metrics")
        assert [line.split()[0] for line in lines[2:]] == ["score"]
    lines = section(show(run, "--keys", "callbacks/*"), "metrics")
    assert [line.split()[0] for line in lines[2:]] == [
        f"{name}/{cost}" for name in ("answers", "broken") for cost in ("num_failed", "num_runs", "stall_s", "total_s")
    ]
    assert "no metric matches 'scoer'; the keys are: callbacks/" in failure(run, "--keys", "scoer")


def test_a_callback_is_chosen_by_name(run):
    assert "answers at step 20" in show(run, "--callback", "answers")
    assert "no callback 'answer'; did you mean 'answers'?" in failure(run, "--callback", "answer")
    assert "no callback 'x'; there are: answers, broken" in failure(run, "--callback", "x")
    assert "callback 'broken' has no samples; those that have some: answers" in failure(run, "--callback", "broken")


async def test_the_run_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no runs under runs/ here" in failure()
    for name, time in (("first", 2000), ("second", 1000)):
        os.utime((await write_run(tmp_path / "runs" / name)) / "run.sqlite", (time, time))
    assert "\nruns/first\n" in show()
    assert "\nruns/second\n" in show("second")
    assert "\nruns/second\n" in show("runs/second/run.sqlite")
    assert "there is no run runs/secnd; did you mean runs/second?" in failure("secnd")
    assert "it has the runs first, second" in failure("runs")


def test_usage(run):
    assert invoke(run, "--samples", "-1").exit_code == 2
    assert invoke(run, "--nothing").exit_code == 2
    assert CliRunner().invoke(app, ["--version"]).stdout == f"descant {__version__}\n"
    assert "descant show runs/" in CliRunner().invoke(app, ["--help"]).stdout
    assert "descant show runs/" in invoke("--help").stdout


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom descant.cli.app import app\n"
        "try: app(['show', '--help'])\n"
        "finally: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--prompt" in done.stdout
    assert "descant" in done.stderr.split()
    assert not set(done.stderr.split()) & {"torch", "transformers", "numpy"}


async def test_a_page_that_nobody_reads_to_its_end_ends_quietly(tmp_path):
    log = RunLog(tmp_path)
    await log.log_metrics(1, {f"training/metric {number}": 1.0 for number in range(20_000)})  # more than a pipe holds
    await log.close()
    process = subprocess.Popen([*COMMAND, "show", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
async def test_a_full_disk_is_one_line(run):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "show", run], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "descant: [Errno 28] No space left on device\n")


async def test_standard_output_that_is_not_unicode(run):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "show", run], capture_output=True, text=True, env=environment, check=True)
    assert "\\u2588" in done.stdout


@given(st.lists(NUMBERS), st.integers(1, 60))
def test_a_sparkline_fits_and_spans_its_own_range(values, width):
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set("▁▂▃▄▅▆▇█")
    if values and len(values) <= width:
        assert line[values.index(min(values))] == "▁"
        assert line[values.index(max(values))] == ("▁" if min(values) == max(values) else "█")
        assert [line[i] for i in sorted(range(len(values)), key=values.__getitem__)] == sorted(line)


@given(NUMBERS, st.integers(1, 400), st.integers(1, 60))
def test_a_constant_is_flat_however_its_means_are_rounded(value, count, width):
    assert set(sparkline([value] * count, width)) == {"▁"}


@given(st.lists(st.floats(), min_size=1), st.integers(1, 60))
def test_what_is_not_finite_is_marked(values, width):
    line = sparkline(values, width)
    assert ("×" in line) == any(not math.isfinite(value) for value in values)


def test_sparklines_by_example():
    assert sparkline([], 10) == ""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 10) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, math.nan, 3, math.inf], 10) == "▁×█×"
    assert sparkline([math.nan, math.nan], 10) == "××"
    assert sparkline([-1e308, 1e308], 10) == "▁█"
    assert sparkline([0.0, 5e-324], 10) == "▁█"
    assert sparkline([0, 0, 7, 7, 3, 4], 3) == "▁█▅"


@given(st.lists(st.integers(0, 500)), st.integers(0, 300))
def test_columns_share_the_width(natural, available):
    widths = fit(natural, available)
    assert all(min(1, need) <= width <= need for width, need in zip(widths, natural, strict=True))
    assert sum(widths) <= max(available, len(widths))
    if sum(natural) <= available:
        assert widths == natural


async def test_a_run_log_with_foreign_content_is_one_line(tmp_path):
    run_dir = await write_run(tmp_path / "run")
    with contextlib.closing(sqlite3.connect(run_dir / "run.sqlite")) as connection, connection:
        connection.execute("UPDATE events SET time = 'noon'")
    done = CliRunner().invoke(app, ["show", str(run_dir)])
    assert done.exit_code == 1
    assert "run.sqlite holds what a run of this version does not (" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_the_narrowest_page_is_still_a_page(tmp_path):
    assert "metrics" in show(await write_run(tmp_path / "run"), COLUMNS="0")


def test_no_samples_means_no_samples(run):
    output = show(run, "--samples", 0)
    assert "latest samples" not in output
    assert "the same prompt across the run" not in output
    assert "the same prompt across the run" in show(run, "--samples", 0, "--prompt", "2+2=")


def test_keys_show_those_metrics_and_nothing_else(run):
    output = show(run, "--keys", "score")
    assert [
        title for title in ("metrics", "callbacks", "latest samples", "failures") if f"\n\n{title}\n" in output
    ] == ["metrics"]
    assert "latest samples" in show(run, "--keys", "score", "--samples", 1)
    assert "latest samples" in show(run, "--keys", "score", "--callback", "answers")
