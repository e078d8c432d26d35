"""What people see, as text."""

import contextlib
import io
import re
import sys

import pytest
from rich.console import Console as RichConsole
from tqdm import tqdm

from descant import MetricSpec, Table
from descant.runner.callback_runner import TRAINING_SPECS
from descant.runner.console import Console
from descant.runner.costs import CallbackCost
from descant.schedule import Plan


@pytest.fixture
def shown(monkeypatch):
    """The console's output, written to a file and to a terminal in turn."""

    def show(is_terminal, act, num_steps=40):
        output = io.StringIO()
        monkeypatch.setattr(
            "descant.runner.console.RichConsole",
            lambda **options: RichConsole(file=output, force_terminal=is_terminal, width=120, color_system=None),
        )
        console = Console(num_steps)
        act(console)
        console.close("completed")
        return output.getvalue()

    return show


def test_the_plan_says_when_everything_runs(shown):
    plan = [
        Plan("validation", "every 10 %", 40, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]),
        Plan("late", "every 100 %", 40, [40]),
        Plan("never", "every 100 %", 40, []),
    ]
    lines = shown(False, lambda console: console.start("SFT: policy", plan)).splitlines()
    assert lines[0] == "SFT: policy"
    assert "validation  every 10 %   11     0, 4, 8, 12, …, 40" in lines[2]
    assert "late        every 100 %  1      40" in lines[3]
    assert "never       every 100 %  0      never" in lines[4]


def test_an_evaluation_is_one_line_with_its_main_numbers_and_a_sample(shown):
    def act(console):
        table = Table(["prompt", "response"], [["2+2=", "4"]])
        declared = [MetricSpec("validation/rewards/score/mean", headline=True), MetricSpec("validation/rewards/*")]
        samples = [MetricSpec("generation/samples"), MetricSpec("generation/num_samples")]
        console.start("SFT", [], {"validation": declared, "samples": samples})
        console.show_evaluation(
            10, "validation", {"validation/rewards/score/mean": 0.25, "validation/rewards/score/std": 0.1}
        )
        console.show_evaluation(10, "samples", {"generation/samples": table, "generation/num_samples": 1})
        console.show_evaluation(20, "big", {"big/number": 1234567.0, "big/note": "text", "big/nan": float("nan")})

    assert shown(False, act).splitlines() == [
        "SFT",
        "step 10 · 25.0%",
        "  validation  rewards/score/mean 0.25",
        "  samples    '2+2=' → '4'",
        "step 20 · 50.0%",
        "  big  number 1,234,567  note text  nan NaN",
        "completed",
    ]


def test_without_a_terminal_about_twenty_lines_mark_the_progress(shown):
    def act(console):
        console.start("SFT", [], {"trainer": TRAINING_SPECS})
        for step in range(1, 401):
            console.show_step(step, {"training/loss": 1 / step, "training/tokens_per_s": 1000.0})

    lines = shown(False, act, num_steps=400).splitlines()
    assert len(lines) == 22
    assert lines[-2] == "step 400/400  loss 0.0025  tokens/s 1,000"


def test_on_a_terminal_there_is_a_bar_with_the_time_left_and_the_latest_numbers(shown):
    def act(console):
        console.start("SFT", [], {"trainer": TRAINING_SPECS})
        console.show_evaluation(20, "loss", {"validation/loss": 0.75})
        console.show_step(20, {"training/loss": 0.5})

    output = shown(True, act)
    assert "20/40" in output
    assert "50%" in output
    assert "left" in output
    assert "loss 0.5  validation/loss 0.75" in output


@pytest.mark.parametrize("width", [120, 60])
def test_the_live_line_says_how_far_an_evaluation_is_and_fits_into_one_line(monkeypatch, width):
    output = io.StringIO()
    monkeypatch.setattr(
        "descant.runner.console.RichConsole",
        lambda **options: RichConsole(file=output, force_terminal=True, width=width, color_system=None),
    )
    console = Console(400)
    console.start("SFT", [], {"trainer": TRAINING_SPECS}, lambda: ["validation at step 40: 120 of 300 answers"])
    console.show_step(40, {"training/loss": 0.5}, lambda: 61.0)
    line = console._live_line()
    console.close("completed")
    assert line.plain.startswith("step 40/400 ")
    assert "left 0:01:01 validation at step 40: 120 of" in line.plain
    assert ("300 answers  loss 0.5" in line.plain) is (width == 120)
    assert line.cell_len < width
    assert "\n\n" not in output.getvalue()


def bar_of_tqdm():
    """A bar as other code draws it, on what is standard error now."""
    return tqdm(total=10, file=sys.stderr, ncols=40, ascii=True)


def test_lines_make_room_for_a_bar_of_tqdm_and_no_second_one_is_drawn(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr("sys.stderr", output := io.StringIO())
    console = Console(10, shows_progress=None)
    console.start("a loop", [])
    with bar_of_tqdm() as bar:
        for step in range(1, 11):
            bar.update()
            console.show_step(step, {"training/loss": 1.0})
        output.truncate(output.seek(0))
        console.warn("careful")
        written = output.getvalue()
    console.close("completed")
    assert "step 10/10" not in output.getvalue()
    assert re.search(r"\r +\r\S*! careful\S*\n\r100%\|", written)  # the bar is cleared, and drawn again below


def test_without_progress_there_is_neither_a_bar_nor_lines_that_mark_it(monkeypatch):
    for is_terminal in "01":
        monkeypatch.setenv("TTY_COMPATIBLE", is_terminal)
        monkeypatch.setattr("sys.stderr", output := io.StringIO())
        console = Console(2, shows_progress=False)
        console.start("a loop", [], {"trainer": TRAINING_SPECS})
        for step in (1, 2):
            console.show_step(step, {"training/loss": 0.5})
        console.show_waiting("validation at step 2: 1 of 3 answers after 10 s")
        console.close("completed")
        assert "loss" not in output.getvalue()
        assert "1 of 3 answers" in output.getvalue()
        assert "completed" in output.getvalue()


def test_a_run_ends_with_what_went_wrong():
    output = io.StringIO()
    cost = CallbackCost("judge", num_runs=3, num_failed_samples=330)
    with contextlib.redirect_stderr(output):
        Console(10).close("completed", [cost], 10.0, [cost.failed_in_all])
    lines = output.getvalue().splitlines()
    assert lines[1].split()[-2:] == ["330", "samples"]
    assert lines[2:] == ["! judge has never measured anything: all 330 samples failed", "completed"]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_text_of_a_model_is_shown_and_not_obeyed(shown, is_terminal):
    attack = "\x1b[2J\x1b]0;owned\x07[red]markup[/red]"

    def act(console):
        console.start(attack, [Plan(attack, attack, 40, [0])])
        console.show_evaluation(
            1, attack, {f"x/{attack}": attack, "t": Table(["prompt", "response"], [[attack, attack]])}
        )
        console.warn(attack)

    output = shown(is_terminal, act)
    assert "\x1b[2J" not in output
    assert "\x1b]0" not in output
    assert "\\x1b[2J" in output
    assert "[red]markup[/red]" in output


def broken_pipe():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    return Closed()


def closed_file():
    file = io.StringIO()
    file.close()
    return file


def full_disk():
    return open("/dev/full", "w")


@pytest.mark.parametrize("standard_error", [broken_pipe, closed_file, full_disk, lambda: None])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_that_cannot_be_written_falls_silent(monkeypatch, standard_error, is_terminal):
    """As in ``... 2>&1 | head``, or with a full disk: the run goes on without it."""
    monkeypatch.setattr("sys.stderr", standard_error())
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if is_terminal else "0")
    console = Console(10)
    console.start("SFT", [Plan("validation", "every 10 %", 40, [0, 10])])
    console.show_evaluation(0, "validation", {"validation/loss": 1.0})
    console.show_step(5, {"training/loss": 1.0})
    console.warn("careful")
    console.close("completed")


def test_in_a_notebook_the_live_line_is_one_output_that_is_updated(monkeypatch, capsys):
    pytest.importorskip("IPython")
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    publisher = CapturingDisplayPublisher()
    InteractiveShell.instance().display_pub = publisher
    try:
        console = Console(10)
        console.start("SFT", [], {"trainer": TRAINING_SPECS})
        console.show_step(10, {"training/loss": 0.5})
        console.show_evaluation(10, "loss", {"validation/loss": 0.75})
        console.close("completed")
    finally:
        InteractiveShell.clear_instance()
    first, *others = publisher.outputs
    assert others
    assert all(output["update"] and output["transient"] == first["transient"] for output in others)
    assert others[-1]["data"]["text/plain"].startswith("step 10/10 ━━━━━━━━")
    assert "loss 0.5" in others[-1]["data"]["text/html"]
    captured = capsys.readouterr()
    assert captured.err == ""  # where it would look like a failure
    assert captured.out.count("step 10") == 1
    assert "validation" not in first["data"]["text/plain"]
