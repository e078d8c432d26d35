"""get_prod_logger, CompositeLogger, StdoutLogger."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from trackers import need

from descant.errors import ConfigurationError
from descant.runner.callback_runner import TRAINING_SPECS
from descant.runner.options import RunOptions
from descant.runner.recorder import RunRecorder
from descant.table import Table
from descant.trackers import configured
from descant.trackers.composite import CompositeLogger
from descant.trackers.configured import get_prod_logger
from descant.trackers.logger import Logger
from descant.trackers.stdout import StdoutLogger


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_trackio(monkeypatch):
    monkeypatch.setattr(configured, "find_spec", lambda name: None if name == "trackio" else find_spec(name))


def test_every_tracker_that_is_configured(monkeypatch, capsys):
    for package in ("wandb", "mlflow", "tensorboard", "trackio"):
        need(package)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "tb")
    logger = get_prod_logger(SimpleNamespace(name="small", recipe_name="addition"))
    assert [tracker.tracker for tracker in logger.loggers] == ["wandb", "mlflow", "tensorboard", "trackio"]
    assert {tracker.run_name for tracker in logger.loggers} == {None}  # which is the name of the run directory
    assert logger.loggers[0].project_name == "addition"
    assert capsys.readouterr().err == (
        "metrics go to wandb, mlflow, tensorboard (tensorboard --logdir tb --samples_per_plugin text=1000), "
        "trackio (trackio show --project addition)\n"
    )


@pytest.mark.parametrize(("mode", "number"), [("offline", 1), ("disabled", 0), ("online", 0)])
def test_wandb_without_a_key(monkeypatch, no_trackio, mode, number):
    need("wandb")
    monkeypatch.setenv("WANDB_MODE", mode)
    assert len(getattr(get_prod_logger(), "loggers", ())) == number


@pytest.mark.parametrize(
    ("netrc", "settings", "address", "mode", "number"),
    [
        ("machine api.wandb.ai login user password KEY", "", None, "online", 1),
        ("machine api.wandb.ai login user password KEY", "", None, "disabled", 0),
        ("machine api.wandb.ai login user password KEY", "", "https://mine:8080", "online", 0),
        ("machine mine:8080 login user password KEY", "", "https://mine:8080", "online", 1),
        ("machine mine login user password KEY", "[default]\nbase_url = https://mine\n", None, "online", 1),
        ("machine github.com login user password KEY", "no settings", None, "online", 0),
        ("machine api.wandb.ai login user password", "", None, "online", 0),
    ],
)
def test_wandb_login(monkeypatch, no_trackio, tmp_path, netrc, settings, address, mode, number):
    need("wandb")
    (tmp_path / "netrc").write_text(netrc.replace("KEY", "k" * 40) + "\n")
    (tmp_path / "settings").write_text(settings)
    monkeypatch.setenv("WANDB_MODE", mode)
    if address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
    assert len(getattr(get_prod_logger(), "loggers", ())) == number


def test_large_numbers_are_printed_whole(capsys):
    StdoutLogger()({"progress/step": 12_345_678, "num_tokens": 2**60, "loss": 0.5})
    assert capsys.readouterr().out == "step 12345678  num_tokens 1152921504606846976  loss 0.5\n"


def test_nothing_configured(no_trackio, capsys):
    logger = get_prod_logger()
    assert isinstance(logger, StdoutLogger)
    logger({"progress/step": 3, "loss": 0.123456789, "note": "\x1b[31mred", "samples": Table(["a"], [[1], [2]])})
    logger.log_config({"lr": 0.5})
    assert capsys.readouterr().out == "step 3  loss 0.123457  note \\x1b[31mred  samples 2 rows\nlr=0.5\n"


async def test_what_a_trainer_logs_is_not_printed_beside_its_console(no_trackio, capsys, tmp_path):
    async with RunRecorder(tmp_path / "run", 1, get_prod_logger(), strict=True) as recorder:
        await recorder.announce("SFT", {"lr": 0.5}, [], {"trainer": TRAINING_SPECS})
        await recorder.record(1, {"training/loss": 0.25})
        await recorder.publish()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "loss 0.25" in printed.err


def test_a_tracker_that_is_configured_and_not_installed_is_a_warning(monkeypatch, no_trackio, caplog):
    monkeypatch.setattr("descant.trackers.logger.find_spec", lambda name: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert isinstance(get_prod_logger(), StdoutLogger)
    assert "pip install 'descant[mlflow]'" in caplog.text


def test_by_hand(monkeypatch, no_trackio, tmp_path):
    need("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    monkeypatch.setenv("TENSORBOARD_MONITORING_LINK", "http://board")
    logger = get_prod_logger()
    logger({"loss": 1.0})
    logger.close()
    assert logger.training_monitoring_link == "http://board"
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))


class Recording(Logger):
    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __call__(self, metrics):
        self.calls.append(metrics)
        if self.error:
            raise self.error

    def close(self):
        self.calls.append("closed")


def test_one_that_fails_does_not_stop_the_others():
    broken, sound = Recording(OSError("disk full")), Recording()
    logger = CompositeLogger(broken, sound)
    with pytest.raises(ExceptionGroup, match="1 of 2 loggers failed") as caught:
        logger({"loss": 1.0})
    assert caught.value.exceptions == (broken.error,)
    logger.close()
    assert sound.calls == [{"loss": 1.0}, "closed"]


def test_no_logger_is_refused():
    with pytest.raises(ConfigurationError, match="needs a logger"):
        CompositeLogger()


def test_a_value_that_is_no_metric_names_its_key():
    with pytest.raises(TypeError, match=r"'loss': \[1\] \(list\) is not a metric"):
        StdoutLogger()({"loss": [1]})


def test_trackers_by_name_and_no_others(monkeypatch, capsys):
    need("trackio"), need("tensorboard")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "tb")
    assert [each.tracker for each in get_prod_logger(None, ["trackio", "tensorboard"]).loggers] == [
        "tensorboard",
        "trackio",
    ]
    assert isinstance(get_prod_logger(None, []), StdoutLogger)
    assert capsys.readouterr().err.splitlines()[1] == "metrics go to the run log"


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        (["trakio"], r"trackers=\['trakio'\]: 'trakio' is not a tracker; did you mean 'trackio'\?"),
        ("wandb", "which account of W&B is meant: run `wandb login`, or set WANDB_API_KEY; or set WANDB_MODE=offline"),
        (["mlflow"], "MLFLOW_TRACKING_URI is not set: it says where to write, such as MLFLOW_TRACKING_URI=http"),
        (["tensorboard"], "TENSORBOARD_LOGGING_DIR is not set"),
    ],
)
def test_a_tracker_that_is_named_and_not_configured_says_what_to_write(trackers, message):
    with pytest.raises(ConfigurationError, match=message):
        get_prod_logger(None, trackers)


def test_a_tracker_that_is_named_and_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("descant.trackers.logger.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'descant\[trackio\]'"):
        get_prod_logger(None, ["trackio"])


def test_the_name_of_a_tracker_is_no_logger_and_says_what_is():
    with pytest.raises(ConfigurationError, match=r"logger=get_prod_logger\(trackers=\['wandb'\]\)"):
        RunOptions(logger="wandb")
