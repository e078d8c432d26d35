"""What a run records of where it ran, and that no secret is in it; notifiers."""

import inspect
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from support import training_model

import descant
from descant import (
    BestModelCallback,
    CheckpointCallback,
    EarlyStoppingCallback,
    ExactMatchGrader,
    GenerateSamplesCallback,
    GraderEvalCallback,
    ModelCallback,
    RecipeCallback,
    StringThread,
    ValidationLossCallback,
    __version__,
)
from descant.errors import ConfigurationError
from descant.notifiers import SimpleProgressNotifier, StageNotifier, StdoutJobNotifier, StdoutStageNotifier
from descant.provenance import describe_environment, is_secret, mask_arguments, masked, plain_config, remember_secrets


@pytest.mark.parametrize(
    "key", ["api_key", "apiKey", "OPENAI_API_KEY", "hf_token", "HF_TOKEN", "token", "db.password", "client-secret",
            "--judge-api-key", "AWS_SECRET_ACCESS_KEY", "Authorization"]
)  # fmt: skip
def test_what_is_called_as_secrets_are_is_masked(key):
    assert is_secret(key)
    assert masked({"a": [{key: "hunter2"}]}) == {"a": [{key: "***"}]}


@pytest.mark.parametrize(
    "key", ["num_tokens", "tokens_to_generate", "pad_token", "eos_token", "tokenizer", "grader_key", "log_key",
            "author", "tokens_per_s", "key", "secretary", "token_budget",
            "mean_token_accuracy", "token_type_ids", "first_token"]
)  # fmt: skip
def test_what_is_called_otherwise_is_not(key):
    assert masked({key: "x"}) == {key: "x"}


def test_secrets_within_values():
    assert masked("postgres://me:hunter2@host/db") == "postgres://***@host/db"
    assert masked("https://host/a@b") == "https://host/a@b"
    assert masked("use hf_abcdefghijklmnopqrstuvwxyz now") == "use *** now"
    assert mask_arguments(["--set=judge.api_key=a=b", "--set", "lr="]) == ["--set=judge.api_key=***", "--set", "lr="]
    assert mask_arguments(["descant", "run", "r.py", "--set", "judge.api_key=x", "--token", "y", "--set", "lr=1"]) == [
        "descant", "run", "r.py", "--set", "judge.api_key=***", "--token", "***", "--set", "lr=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "--set=judge.api_key=hunter2hunter2",
        "env=OPENAI_KEY='hunter2hunter2' a=1",
        "a=b=c; d=HF_TOKEN=hunter2",
        "Authorization: Bearer hunter2",
        "{'Authorization': 'Bearer hunter2'}",
        "x-api-key: hunter2hunter2",
        "Set-Cookie: session=hunter2hunter2",
        "Command '['curl', '--api-key', 'hunter2x', '-H', 'X-Api-Key: hunter2x']' returned 1",
        r"{\"api_key\": \"hunter2\", \"model\": \"m\"}",
        "https://hunter2@host/x.git",
        "https://host/x?sig=hunter2&se=1",
        "hunter2 eyJhbGciOiJIUzI1NiJ9.eyJodW50ZXIyIjoxfQ.abc".removeprefix("hunter2 "),
    ],
)
def test_secrets_in_the_text_of_errors(text):
    assert "hunter2" not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "api_key: field required",
        "judge.api_key = 5: must be a valid string",
        "unexpected token: 2024-01-01",
        "use --token to set 12345678 things",
        "pad_token='<pad>', num_tokens: 123456789, eos_token_id: 12345678, max_new_tokens=55",
        "callback 'hf_token' failed at step 12345678",
        "git@github.com:me/x.git",
    ],
)
def test_other_text_of_errors_stays_as_it_is(text):
    assert masked(text) == text


def test_the_value_of_a_secret_is_masked_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "plain hunter")
    monkeypatch.setenv("SHORT_TOKEN", "step")
    for name in ("PWD", "OLDPWD"):
        monkeypatch.setenv(name, "/home/of/me")
    assert masked("runs are in /home/of/me/runs") == "runs are in /home/of/me/runs"
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "/etc/identity")
    assert (
        masked("key plain hunter is wrong at step 1 of /etc/identity") == "key *** is wrong at step 1 of /etc/identity"
    )
    remember_secrets({"judges": [{"key": SecretStr("told hunter")}, {"key": SecretStr("")}]})
    assert masked("judge refused told hunter") == "judge refused ***"


class Client:
    def __repr__(self):
        return "Client(api_key='hunter2 3', model=\"m\", headers={'x-auth-token': 'hunter2'})"


LEAKS = {
    "a key of an object": Client(),
    "a nested key": {"judge": [{"openai_key": "hunter2"}]},
    "several": {"secrets": {"a": "hunter2"}},
    "a header": {"headers": [("Authorization", "hunter2")]},
    "a header as text": "Authorization: Bearer hunter2hunter2hunter2",
    "a query": "https://host/?a=1&api_key=hunter2&b=2",
    "a password with an at": "postgres://me:hunter@hunter2@host/db",
    "JSON": '{"api_key": "hunter2", "a": 1}',
    "a shell": "HF_TOKEN=hunter2 descant run",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    "bytes": {"password": b"hunter2"},
    "keys that are no text": {("a", 1): {"pwd": "hunter2"}},
}


@pytest.mark.parametrize("case", LEAKS)
def test_no_secret_is_in_a_config(case):
    shown = json.dumps(plain_config({"value": LEAKS[case], "kept": "model=m, pad_token='x' and num_tokens=5"}))
    assert "hunter2" not in shown
    assert "***" in shown
    assert "model=m, pad_token='x' and num_tokens=5" in shown


def test_a_config_is_plain():
    circular = {"lr": 0.5}
    circular["itself"] = circular
    assert plain_config({"c": circular, 1: {"set"}, "path": Path("/a"), "none": None, "odd": "\ud800"}) == {
        "c": {"lr": 0.5, "itself": "{'lr': 0.5, 'itself': {...}}"},
        "1": "{'set'}",
        "path": "/a",
        "none": None,
        "odd": "\\ud800",
    }


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_masking_keeps_the_shape(value):
    assert type(masked(value)) is type(value)
    if isinstance(value, dict):
        assert masked(value).keys() == value.keys()


def test_the_environment_says_versions_commit_and_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", "hunter2"])
    found = describe_environment()
    assert found["python"] == platform.python_version()
    assert {"torch", "transformers"} <= found["packages"].keys()
    assert found["packages"].get("descant", __version__) == __version__
    assert found["command_line"] == ["train.py", "--api-key", "***"]
    assert "git" not in found

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init"), git("add", "."), git("commit", "-m", "one")
    assert describe_environment()["git"] == {"commit": git("rev-parse", "HEAD"), "is_dirty": False}
    (tmp_path / "file").write_text("2")
    assert describe_environment()["git"]["is_dirty"] is True


def test_no_git_is_no_reason_to_fail(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git" not in describe_environment()


def test_the_environment_does_not_import_torch():
    script = "import sys, descant.provenance as e; print('devices' in e.describe_environment(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


OPTIONS = {"name": "mine", "at_start": False, "at_end": False, "on_error": "raise", "timeout_s": 30.0}
OF_GENERATION = {**OPTIONS, "temperature": 0.5, "max_gen_len": 7, "limit": 1, "num_completions": 2}
OF_A_METRIC = {**OPTIONS, "metric": "validation/loss", "mode": "min", "log_key_prefix": "p"}
SETTINGS = {
    GraderEvalCallback: {**OF_GENERATION, "log_key": "v", "clear_grader_logs": False, "max_concurrent_samples": 3,
                         "pass_threshold": 0.5},
    GenerateSamplesCallback: {**OF_GENERATION, "log_key": "s", "log_key_prefix": "p"},
    ValidationLossCallback: {**OPTIONS, "log_key": "l", "limit": 1},
    CheckpointCallback: {**OF_A_METRIC, "checkpoint_name": "c", "keep_last": 2, "keep_best": 3},
    BestModelCallback: {**OF_A_METRIC, "checkpoint_name": "c"},
    EarlyStoppingCallback: {**OF_A_METRIC, "patience": 5, "min_delta": 0.1},
}  # fmt: skip
"""Of every callback all that can be set, with values that are not the defaults."""
OBJECTS = {"self", "model", "grader", "validation_set", "thread_set", "options", "frequency"}
"""The frequency is recorded as the schedule that it stands for."""


async def test_every_setting_of_every_callback_is_recorded(qwen3_dir):
    built_in = {getattr(descant, name) for name in descant.__all__ if name.endswith("Callback")}
    assert set(SETTINGS) == built_in - {RecipeCallback, ModelCallback}
    threads = [StringThread().user("1+1=").assistant("2")]
    async with training_model(qwen3_dir) as model:
        objects = {"model": model, "grader": ExactMatchGrader(), "validation_set": threads, "thread_set": threads}
        for kind, settings in SETTINGS.items():
            names = set(inspect.signature(kind.__init__).parameters)
            frequency = {"frequency": 0.5} if "frequency" in names else {}
            given = {name: value for name, value in objects.items() if name in names}
            assert names - OBJECTS <= set(settings), kind  # a new argument must be recorded, too
            found = kind(**given, **frequency, **settings).settings()
            assert found.items() >= settings.items(), kind
            if "grader" in names:
                expected = {"class": "ExactMatchGrader", "key": "exact_match", "reference_key": "reference"}
                assert found["grader"].items() >= expected.items()


# Notifiers


def test_progress_is_printed_by_tenths(capsys):
    stage = StdoutJobNotifier().stage_notifier("train")
    for done in range(101):
        stage.report_progress(tot_num_samples=100, processed_num_samples=done)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert (lines[0], lines[-1]) == ("train: 0 of 100 samples (0%)", "train: 100 of 100 samples (100%)")
    stage.report_progress(monitoring_link="http://x", checkpoints=["a"])
    stage.report_progress(monitoring_link="http://x")
    assert capsys.readouterr().out == "train: watch it at http://x\ntrain: checkpoint a\n"


class Recorded(StdoutJobNotifier):
    def report_progress(self, *arguments):
        self.arguments = arguments


@pytest.mark.parametrize(("total", "done", "reported"), [(10, 11, 10), (10, -1, 0), (None, -1, 0)])
def test_more_than_everything_is_cut_with_a_warning(total, done, reported):
    job = Recorded()
    with pytest.warns(UserWarning, match=f"stage 'train': {done}"):
        StageNotifier("train", job).report_progress(tot_num_samples=total, processed_num_samples=done)
    assert job.arguments == ("train", total, reported, None, None)


def test_stages_of_a_job():
    job = StdoutJobNotifier("mine")
    job.register_stages(["a", "b"])
    assert job.stage_notifier("b").job_notifier is job
    job.stage_notifier("c")
    assert (job.stages, job.job_id) == (["a", "b", "c"], "mine")
    with pytest.raises(ConfigurationError, match="needs a list of names"):
        job.register_stages("abc")


def test_a_stage_without_parts(capsys):
    with SimpleProgressNotifier(StdoutStageNotifier("merge")):
        assert capsys.readouterr().out == "merge: 0 of 1 samples (0%)\n"
    assert capsys.readouterr().out == "merge: 1 of 1 samples (100%)\n"
    with pytest.raises(RuntimeError), SimpleProgressNotifier(StdoutStageNotifier("merge")):
        raise RuntimeError
    assert "100%" not in capsys.readouterr().out
