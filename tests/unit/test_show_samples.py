"""``descant show``: answers to read, whole or in tables, and the whole page as JSON."""

import json
import math
import subprocess
import sys
import unicodedata
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support import addition_threads, training_model
from typer.testing import CliRunner

from descant import SFT, BaseGrader, GenerateSamplesCallback, Grade, GraderEvalCallback, IgnoreGradeException, Table
from descant.cli.app import app
from descant.cli.grid import labelled_lines
from descant.cli.whole_samples import last_user_turn
from descant.runlog.run_log import RunLog
from descant.text import printable

ATTACK = "\x1b[2J\x1b]0;owned\x07[bold red]markup[/] \u202egnp.exe\u202c \x9b31m\r:smile:"
COLUMNS = [
    "reasoning", "grade", "prompt", "response", "example_id", "completion_index", "reference", "system", "num_tokens",
    "finish_reason", "error",
]  # fmt: skip
CONVERSATION = "[user]\nWhat is 1+1?\n\n[assistant]\n2\n\n[user]\nAnd twice that?"


def invoke(*arguments, width=80):
    return CliRunner().invoke(app, ["show", *map(str, arguments)], env={"COLUMNS": str(width)})


def show(*arguments, width=80):
    """The lines below the head of the page, without spaces at their ends."""
    done = invoke(*arguments, width=width)
    assert done.exit_code == 0, done.stderr or done.exception
    lines = done.stdout.split("\n")
    assert not [line for line in lines if line != line.rstrip()]
    return lines[lines.index("") + 1 : -1]


def failure(*arguments):
    done = invoke(*arguments)
    assert done.exit_code == 1, done.stdout
    return done.stderr


def document(*arguments):
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.stderr or done.exception
    assert done.stdout.isascii()
    return json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def answer(example_id, prompt, response, grade, **cells):
    cells = {"example_id": example_id, "prompt": prompt, "response": response, "grade": grade, **cells}
    return [cells.get(column) for column in COLUMNS]


async def write_run(run_dir):
    """Three evaluations of a grader at temperature 0, samples at temperature 1, a loss, and a table without answers."""
    log = RunLog(run_dir)
    callbacks = [{"name": "graded", "temperature": 0.0}, {"name": "samples", "temperature": 1.0}, {"name": "loss"}]
    await log.log_config({"trainer": "SFT", "num_steps": 20, "callbacks": callbacks, "metrics": []})
    errors = {0: "no context", 10: "ConnectionError: the judge is down", 20: None}
    for step, grades in ((0, (1, 0, 0.5)), (10, (1, 0.25, 0.5)), (20, (0.5, 1, 0.5))):
        rows = [
            answer("id-one", "1+1=", f"two at {step}", grades[0], reference="2", reasoning=f"because of {step}"),
            answer("id-two", CONVERSATION, f"four at {step}", grades[1], system="Be brief. " * 12, num_tokens=1),
            answer("id-three", "3+3=", "six", grades[2], system="Be brief. " * 12),
            answer("id-four", "4+4=", "eight" if step else None, None, error=errors[step]),
            answer("id-five", "5+5=", "ten", None, error="not applicable: no rubric"),
        ]
        await log.log_metrics(step, {"validation/samples": Table(COLUMNS, rows)}, "graded")
        shown = [[f"drawn at {step}", "1+1=", "id-one", index] for index in range(2)]
        columns = ["response", "prompt", "example_id", "completion_index"]
        await log.log_metrics(step, {"generation/samples": Table(columns, shown)}, "samples")
        losses = Table(["example_id", "prompt", "loss", "error"], [["a", "1+1=", 0.5, None], ["b", "2+2=", 2.5, None]])
        await log.log_metrics(step, {"validation/loss_samples": losses, "validation/loss": math.nan}, "loss")
        await log.log_metrics(step, {"norms": Table(["layer", "norm"], [["first", math.inf]])}, "norms")
    await log.log_metrics(20, {"late": Table(["prompt"], [["asked once"]])}, "late")
    await log.log_event(20, "callback_failed", "graded", "it failed", "Traceback ...")
    await log.close()
    return run_dir


@pytest.fixture
async def run(tmp_path):
    return await write_run(tmp_path / "run")


@pytest.mark.parametrize(
    "arguments", [["RUN", "--samples"], ["--samples", "RUN"], ["RUN", "--samples", "--callback", "graded"]]
)
def test_samples_without_a_number_are_shown_alone(run, arguments):
    lines = show(*[run if argument == "RUN" else argument for argument in arguments])
    assert lines[:5] == [
        "latest samples",
        "graded (temperature 0) at step 20, 5 rows",
        "  prompt             response    reference  grade  error",
        "  1+1=               two at 20   2            0.5",
        "  … And twice that?  four at 20                 1",
    ]
    assert not {"metrics", "failures", "the same prompt across the run"} & set(lines)
    assert ("samples (temperature 1) at step 20, 2 rows" in lines) == ("--callback" not in arguments)


def test_a_number_of_samples_is_of_each_table_of_the_page(run):
    for option in (["--samples", 1], ["--samples=1"]):
        lines = show(run, *option)
        assert lines.count("  1+1=    two at 20  2            0.5") == 1
        assert not any("And twice" in line for line in lines)
        assert {"metrics", "failures", "the same prompt across the run"} <= set(lines)


def test_the_temperature_tells_apart_who_answers_the_same_prompt(run):
    lines = show(run)
    assert "graded (temperature 0): 1+1=" in lines
    assert "samples (temperature 1): 1+1=" in lines
    assert "loss: 1+1=" in lines


def test_failed_samples_are_of_all_evaluations_with_their_error(run):
    assert show(run, "--failed") == [
        "failed samples",
        "graded (temperature 0): 2 of 15 rows failed",
        "  step  prompt  response  error",
        "    10  4+4=    eight     ConnectionError: the judge is down",
        "     0  4+4=              no context",
        "loss: 0 of 6 rows failed",
    ]
    assert show(run, "--failed", "--step", 20)[1] == "graded (temperature 0): 0 of 5 rows failed"
    assert "graded (temperature 0): 0 of 3 rows failed" in show(run, "--failed", "--prompt", "id-one")


def test_the_worst_samples_have_the_lowest_grade_or_the_highest_loss(run):
    lines = show(run, "--worst", "--samples", 2)
    assert lines == [
        "worst samples",
        "graded (temperature 0) at step 20, 5 rows, lowest grade first",
        "  prompt  response   reference  grade  reasoning",
        "  1+1=    two at 20  2            0.5  because of 20",
        "  3+3=    six                     0.5",
        "  2 of 3 are shown; --samples 3 shows all",
        "loss at step 20, 2 rows, highest loss first",
        "  prompt  loss",
        "  2+2=    2.5",
        "  1+1=    0.5",
    ]
    assert "no sample has a grade or a loss" in failure(run, "--worst", "--callback", "samples")


def test_changed_answers_stand_next_to_each_other_worse_ones_first(run):
    lines = show(run, "--changed")
    assert lines[:7] == [
        "changed answers",
        "graded (temperature 0) from step 0 to step 20",
        "  3 of 5 answers changed: 1 worse, 1 better",
        "  prompt             reference  step 0        grade  step 20     grade",
        "  1+1=               2          two at 0          1  two at 20     0.5",
        "  … And twice that?             four at 0         0  four at 20      1",
        "  4+4=                          (no context)         eight",
    ]
    assert lines[7:9] == ["samples (temperature 1) from step 0 to step 20", "  2 of 2 answers changed"]


async def test_the_greatest_changes_for_the_worse_come_first(tmp_path):
    log = RunLog(tmp_path)
    old, new = (
        {"a": 0.5, "b": 0.5, "c": 1, "d": 0, "e": 1, "f": 1},
        {"a": 0.75, "b": 0, "c": None, "d": 1, "e": 0, "f": 1},
    )
    for step, grades in ((1, old), (2, new)):
        rows = [[name, name, grade] for name, grade in grades.items()]
        await log.log_metrics(step, {"t": Table(["example_id", "response", "grade"], rows)}, "graded")
    await log.close()
    assert [row["example_id"] for row in document(tmp_path, "--changed")["samples"]] == ["e", "b", "d", "a", "c"]


def test_changes_are_from_a_step_to_the_latest_or_between_two(run):
    lines = show(run, "--changed", "--step", 10, "--callback", "graded")
    assert lines[1] == "graded (temperature 0) from step 10 to step 20"
    assert show(run, "--changed", "--step", 10, "--step", 0)[1] == "graded (temperature 0) from step 0 to step 10"
    assert show(run, "--changed", "--prompt", "3+3")[2:] == ["  0 of 1 answers changed"]
    assert "there are no answers at two evaluations" in failure(run, "--changed", "--step", 20)


def test_an_old_answer_stands_whole_above_the_new_one(run):
    lines = show(run, "--changed", "--full", "--samples", 1, "--callback", "graded")
    assert lines[3:] == [
        "",
        "id-one",
        "  prompt     1+1=",
        "  reference  2",
        "",
        "  step 0 · grade 1",
        "  response   two at 0",
        "  reasoning  because of 0",
        "",
        "  step 20 · grade 0.5",
        "  response   two at 20",
        "  reasoning  because of 20",
        "",
        "  1 of 3 are shown; --samples 3 shows all",
    ]


def test_whole_samples_have_every_turn_the_reasoning_and_the_system_prompt_once(run):
    lines = show(run, "--full", "--samples", 3, "--callback", "graded")
    assert lines == [
        "latest samples",
        "graded (temperature 0) at step 20, 5 rows",
        "",
        "id-one · grade 0.5",
        "  prompt     1+1=",
        "  response   two at 20",
        "  reference  2",
        "  reasoning  because of 20",
        "",
        "id-two · grade 1 · 1 token",
        "  system     Be brief. Be brief. Be brief. Be brief. Be brief. Be brief. Be",
        "             brief. Be brief. Be brief. Be brief. Be brief. Be brief.",
        "  user       What is 1+1?",
        "  assistant  2",
        "  user       And twice that?",
        "  response   four at 20",
        "",
        "id-three · grade 0.5",
        "  system     (as above)",
        "  prompt     3+3=",
        "  response   six",
        "",
        "  3 of 5 are shown; --samples 5 shows all",
    ]


def test_a_prompt_is_followed_whole(run):
    lines = show(run, "--full", "--prompt", "id-one", "--callback", "graded")
    assert lines[:4] == [
        "the same prompt across the run", "graded (temperature 0), id-one", "  prompt     1+1=", "  reference  2",
    ]  # fmt: skip
    assert [line for line in lines if "step" in line] == [
        "  step 0 · grade 1", "  step 10 · grade 1", "  step 20 · grade 0.5",
    ]  # fmt: skip
    assert lines[-2:] == ["  response   two at 20", "  reasoning  because of 20"]


def test_what_does_not_go_together_or_is_not_there_says_so(run):
    for options in (["--failed", "--worst"], ["--samples", 0, "--full"], ["--samples", "-1"]):
        done = invoke(run, *options)
        assert done.exit_code == 2
        assert "Invalid value for" in done.stderr
    assert "there are no samples of step 7; there are: 0, 10, 20" in failure(run, "--step", 7)
    assert "no prompt contains '9+9'" in failure(run, "--failed", "--prompt", "9+9")


async def test_a_run_without_samples_says_so(tmp_path):
    await RunLog(tmp_path).close()
    for option in ("--samples", "--failed", "--full", "--worst", "--changed"):
        assert show(tmp_path, option)[1:] == ["  none so far"]


@pytest.mark.parametrize("options", ["--full", "--failed --full", "--changed --full", "--prompt markup --full"])
async def test_whole_texts_are_shown_and_not_obeyed(tmp_path, options):
    log = RunLog(tmp_path)
    for step in (0, 1):
        text = f"{step}{ATTACK}\n{ATTACK}"
        row = [text, text, text, text, text, "e" + ATTACK, 1.0]
        headers = ["prompt", "system", "response", "reasoning", "error", "example_id", ATTACK]
        await log.log_metrics(step, {"t": Table(headers, [row])}, "c")
    await log.close()
    lines = show(tmp_path, *options.split())
    assert not {character for line in lines for character in line if unicodedata.category(character)[0] == "C"}
    assert sum("\\x1b[2J\\x1b]0;owned\\x07[bold red]markup[/]" in line for line in lines) >= 5
    assert max(map(cell_len, lines)) <= 80


@given(st.text(max_size=200), st.integers(30, 100))
def test_whole_texts_fit_the_width_and_nothing_is_lost(text, width):
    lines = [line.plain for line in labelled_lines([("長い label", text)], width)]
    assert max(map(cell_len, lines)) <= width
    shown = "".join("".join(lines).split()).removeprefix("長いlabel")
    written = text if text.strip() else repr(text)
    assert shown == "".join(printable(" ".join(written.replace("\r\n", "\n").expandtabs().split("\n"))).split())


def test_the_last_user_turn():
    assert last_user_turn("1+1=") == "1+1="
    assert last_user_turn(CONVERSATION) == "… And twice that?"
    assert last_user_turn("[user]\n1+1=\n\n[assistant]\n\n\n[tool]\n2") == "… 1+1="
    assert last_user_turn("[assistant]\nHello\n\n[tool]\n2") == "… 2"
    assert last_user_turn("see\n\n[user]\nin a text") == "see\n\n[user]\nin a text"


def test_json_has_everything_of_the_page(run):
    found = document(run)
    assert list(found) == [
        "name", "path", "trainer", "outcome", "reason", "step", "num_steps", "started_at", "ended_at",
        "last_written_at", "config", "metrics", "samples", "events",
    ]  # fmt: skip
    assert (found["name"], found["path"]) == ("run", str(run))
    assert (found["trainer"], found["outcome"], found["step"], found["num_steps"]) == ("SFT", None, 20, 20)
    assert found["started_at"] == found["events"][0]["time"]
    assert abs(datetime.fromisoformat(found["started_at"]) - datetime.now().astimezone()) < timedelta(hours=1)
    assert found["metrics"]["validation/loss"] == {
        "unit": "", "better": None, "headline": False, "num_points": 3, "num_nan": 3, "minimum": None, "maximum": None,
        "first": [0, "NaN"], "last": [20, "NaN"],
    }  # fmt: skip
    rows = {
        callback: [row for row in found["samples"] if row["callback"] == callback] for callback in ("graded", "norms")
    }
    assert [row["step"] for row in rows["graded"]] == [20] * 5
    assert (rows["graded"][0]["example_id"], rows["graded"][0]["cells"]["reasoning"]) == ("id-one", "because of 20")
    assert [row["cells"] for row in rows["norms"]] == [{"layer": "first", "norm": "Infinity"}]
    assert found["events"][0]["details"] == "Traceback ..."
    assert "details" not in document(run, "--no-failures")["events"][0]


def test_json_has_what_the_options_ask_for(run):
    assert "samples" not in document(run, "--samples", 0)
    metrics = document(run, "--keys", "loss")
    assert not {"config", "samples", "events"} & set(metrics)
    assert metrics["metrics"]["validation/loss"]["points"] == [[0, "NaN"], [10, "NaN"], [20, "NaN"]]
    samples = document(run, "--changed", "--callback", "graded", "--samples", 1)
    assert not {"config", "metrics", "events"} & set(samples)
    (changed,) = samples["samples"]
    assert (changed["step"], changed["cells"]["grade"]) == (20, 0.5)
    assert (changed["before"]["step"], changed["before"]["cells"]["grade"]) == (0, 1)
    assert [row["step"] for row in document(run, "--failed")["samples"]] == [10, 0]
    followed = document(run, "--prompt", "id-two")["samples"]
    assert [(row["step"], row["example_id"]) for row in followed] == [(step, "id-two") for step in (0, 10, 20)]
    assert [row["step"] for row in document(run, "--prompt", "once", "--callback", "late")["samples"]] == [20]


@pytest.mark.parametrize("command", ["show {run}", "runs {runs}", "runs compare {run} {run}"])
def test_a_pipe_that_takes_no_more_ends_the_command_without_an_error(run, command):
    arguments = [part.format(run=run, runs=run.parent) for part in command.split()]
    command = [sys.executable, "-c", "from descant.cli.app import app; app()", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 0


class Judge(BaseGrader):
    """Refuses one answer, does not apply to another, and has a reason for the rest."""

    def __init__(self):
        super().__init__("judge")

    async def grade(self, thread):
        first = thread.messages()[0].content
        if first == "10+40=":
            raise ConnectionError("down")
        if first == "11+40=":
            raise IgnoreGradeException("no rubric")
        return Grade(0.25, "judge", f"a quarter for {first}")


async def test_the_answers_of_a_real_run(qwen3_dir, tmp_path):
    validation = addition_threads(3, offset=40)
    async with training_model(qwen3_dir) as model:
        callbacks = [
            GraderEvalCallback(validation, model, Judge(), 1, max_gen_len=2),
            GenerateSamplesCallback(validation[:1], model, 1, max_gen_len=2),
        ]
        await SFT(dataset=addition_threads(4), model=model, lr=0.1, callbacks=callbacks, run_dir=tmp_path / "run").run()
    failed = show(tmp_path / "run", "--failed")
    assert failed[1] == "validation (temperature 0): 2 of 6 rows failed"
    assert [line.split()[0] for line in failed[3:5]] == ["1", "0"]
    assert failed[-1] == "samples (temperature 1): 0 of 2 rows failed"
    whole = show(tmp_path / "run", "--full", "--worst")
    assert "  reasoning  a quarter for 12+40=" in whole
    assert "  prompt     12+40=" in whole
    changed = show(tmp_path / "run", "--changed")
    assert changed[1] == "validation (temperature 0) from step 0 to step 1"
