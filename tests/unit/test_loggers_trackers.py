"""What is particular to each tracker."""

import asyncio
import json
import logging
import math
import re
import socket
import subprocess
import sys
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import query
from test_cli_runs import invoke
from test_loggers_down import gate  # noqa: F401 - a fixture
from trackers import (  # noqa: F401 - two are fixtures
    MLFlowPlace,
    TensorBoardPlace,
    TrackioPlace,
    WandbPlace,
    _text,
    mlflow_uri,
    need,
    trackio_dir,
)

from descant.errors import ConfigurationError
from descant.provenance import describe_environment
from descant.runner.recorder import RunRecorder
from descant.table import Table
from descant.text import printable
from descant.trackers.logger import RunInfo
from descant.trackers.mlflow import MLFlowLogger, mlflow_name
from descant.trackers.tensorboard import TBMetricsLogger, _markdown, markdown_table
from descant.trackers.trackio import TrackioLogger
from descant.trackers.wandb import WandbLogger

NOW_S = 1_700_000_000.0
REMOTE = "https://hunter2hunter2@example.com/x.git"


def started(place, run_id="0123456789abcdef", config=None):
    logger = place.logger()
    logger.start(RunInfo(run_id, "a run", place.folder, config or {}))
    return logger


class TestWandb:
    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        need("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        return WandbPlace(tmp_path)

    def test_the_summary_has_the_latest_step(self, place):
        logger = started(place)
        for step, loss in ((1, 3.0), (10, 1.0), (5, 2.0)):
            logger.write(step, NOW_S, {"loss": loss}, {})
        logger.finish("completed")
        assert place.summary()["loss"] == 1.0
        assert place.summary()["progress/step"] == 10

    @pytest.mark.parametrize(("outcome", "code"), [("completed", 0), ("stopped", 0), ("failed", 1), ("interrupted", 1)])
    def test_the_outcome_is_the_exit_code(self, place, outcome, code):
        started(place).finish(outcome)
        assert place.exit_codes() == [code]

    def test_the_summary_has_the_best_value_where_it_is_declared_which_are_better(self, place):
        metrics = [{"key": "v/loss", "better": "lower"}, {"key": "v/score", "better": "higher"}]
        metrics += [{"key": "v/*", "better": "higher"}, {"key": "v/length", "better": None}]
        logger = started(place, config={"metrics": metrics})
        for step, value in ((1, 3.0), (10, 1.0), (20, 2.0), (5, 4.0)):
            logger.write(step, NOW_S, dict.fromkeys(["v/loss", "v/score", "v/length"], value), {})
        logger.finish("completed")
        summary = place.summary()
        assert summary["v/loss"] == {"min": 1.0, "last": 4.0}  # as W&B has it before what came late is put right
        assert summary["v/score"] == {"max": 4.0, "last": 4.0}
        assert (summary["v/loss/last"], summary["v/score/last"], summary["v/length"]) == (2.0, 2.0, 2.0)

    def test_charts_go_by_the_step_of_descant(self, place):
        started(place).finish("completed")
        (metric,) = [r.metric for _, r in place._records() if r.WhichOneof("record_type") == "metric"]
        assert (metric.glob_name, metric.step_metric) == ("*", "progress/step")

    def test_a_table_with_other_columns_goes_beside(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {}, {"t": Table(["a"], [[1]])})
        logger.write(2, NOW_S, {}, {"t": Table(["a", "b"], [[1, 2]])})
        logger.finish("completed")
        assert place.table("t") == [[1, 1]]
        assert place.table("t-2") == [[2, 1, 2]]

    def test_names_that_crash_its_service_or_are_lost_are_mapped(self, place):
        keys = {"\\": "_x5c_", "a\\b": "a_x5c_b", "": "_", "\n\0": "_xa__x0_", ".a.": ".a.", "_wandb": "metric_wandb"}
        logger = started(place)
        logger.write(1, NOW_S, dict.fromkeys(keys, 0.5), {})
        tables = [f"{'k' * 300}{end}" for end in "ab"] + ["日本" * 100, "\0"]
        logger.write(2, NOW_S, {}, {name: Table(["x"], [[1]]) for name in tables})
        logger.finish("completed")
        assert [place.numbers(name) for name in keys.values()] == [[(1, 0.5)]] * len(keys)
        names = {key.removesuffix("/path") for _, row in place._rows() for key in row if key.endswith("/path")}
        assert len(names) == len(tables)
        assert all(place.table(name) == [[2, 1]] for name in names)

    def test_no_file_of_wandb_has_a_secret_of_the_command_line_or_of_git(self, place, monkeypatch):
        monkeypatch.chdir(place.folder)
        monkeypatch.setattr(sys, "argv", ["train.py", "--set=judge.api_key=hunter2hunter2", "hf_hunter2hunter2hunter2"])
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        (place.folder / "file").touch()
        for command in (["init"], ["add", "file"], ["commit", "-m", "a"], ["remote", "add", "origin", REMOTE]):
            subprocess.run([*git, *command], check=True, capture_output=True)
        logger = started(place, config=describe_environment())
        logger.write(1, NOW_S, {"loss": 1.0}, {})
        logger.finish("completed")
        files = [path for path in (place.folder / "wandb").rglob("*") if path.is_file()]
        assert any(path.suffix == ".wandb" for path in files)
        assert [path for path in files if b"hunter2" in path.read_bytes()] == []
        assert place.config()["command_line"] == ["train.py", "--set=judge.api_key=***", "***"]

    def test_an_id_that_wandb_refuses_is_replaced(self, place):
        started(place, run_id="a/b#c?" * 20).finish("completed")
        (run_id,) = {r.run.run_id for _, r in place._records() if r.WhichOneof("record_type") == "run"}
        assert re.fullmatch("[0-9a-f]{32}", run_id)


class TestMLFlow:
    @pytest.fixture
    def place(self, tmp_path, request):
        return MLFlowPlace(tmp_path, request.getfixturevalue("mlflow_uri"))

    def test_more_metrics_than_a_request_takes(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {f"m{n}": n for n in range(1100)} | {f"s{n}": "x" for n in range(110)}, {})
        logger.finish("completed")
        run = place.run()
        assert {key: run.data.metrics[key] for key in ("m0", "m1099")} == {"m0": 0.0, "m1099": 1099.0}
        assert len(run.data.metrics) == 1100
        assert run.data.tags["s109"] == "x"

    def test_the_whole_config_is_an_artifact(self, place):
        config = {"trainer": {"lr": 0.5, "betas": [0.9, 0.95]}, "prompt": "x" * 9000, "pass@k": None}
        started(place, config=config).finish("completed")
        params = place.run().data.params
        assert params["trainer.lr"] == "0.5"
        assert params["trainer.betas"] == "[0.9, 0.95]"
        assert params["pass_at_k"] == "null"
        assert len(params["prompt"]) == 6000
        assert place.artifact("config.json") == config

    def test_every_setting_of_a_run_is_a_param_with_a_number_as_a_number(self, place):
        callbacks = [{"name": "loss", "frequency": 0.25}, {"name": "samples", "max_gen_len": 8}]
        config = {
            "run_id": "x",
            "lr": 2e-3,
            "callbacks": callbacks,
            "metrics": [{"key": "a"}],
            "plan": {"loss": [0, 1]},
        }
        started(place, config=config).finish("completed")
        params = place.run().data.params
        assert {key: float(params[key]) for key in params if key != "run_id"} == {
            "lr": 2e-3, "callbacks.loss.frequency": 0.25, "callbacks.samples.max_gen_len": 8,
        }  # fmt: skip
        assert place.artifact("config.json") == config

    def test_a_param_that_changes_keeps_its_value_and_says_so(self, place, caplog):
        started(place, config={"lr": 0.5}).finish("failed")
        with caplog.at_level(logging.WARNING, "descant"):
            started(place, config={"lr": 0.25, "seed": 1}).finish("completed")
        assert place.config() == {"lr": "0.5", "seed": "1"}
        assert place.artifact("config.json") == {"lr": 0.25, "seed": 1}
        assert "config.json has the new one of: lr" in caplog.text

    def test_the_tag_of_a_string_has_the_latest_step(self, place):
        logger = started(place)
        for step, phase in ((1, "a"), (10, "c"), (5, "b"), (11, "c")):
            logger.write(step, NOW_S, {"phase": phase, "mlflow.runName": "taken", "long": "\x1b" * 6000}, {})
        logger.finish("completed")
        assert len(place.run().data.tags["long"]) == 6000
        assert place.run().data.tags["phase"] == "c"
        assert place.run().info.run_name == "a run"
        assert place.strings("phase") == [(1, "a"), (10, "c"), (5, "b")]

    def test_what_is_written_twice_after_a_failure_is_there_once(self, place):
        logger = started(place)
        table = Table(["response", "grade"], [["a", 1 / 3], ["b", None]])
        for _ in range(2):
            logger.write(3, NOW_S, {"loss": 0.5}, {"samples": table})
        logger.finish("completed")
        again = started(place)
        for step in (3, 4, 3):  # not only the last table
            again.write(step, NOW_S, {"loss": 0.5}, {"samples": table})
        again.finish("completed")
        assert place.numbers("loss") == [(3, 0.5), (4, 0.5)]
        assert place.table("samples") == [[3, "a", 1 / 3], [3, "b", None], [4, "a", 1 / 3], [4, "b", None]]

    def test_two_names_that_would_be_one_stay_two(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {"pass@4": 0.25, "pass_at_4": 0.5, "descant.outcome": "mine"}, {})
        logger.finish("completed")
        assert place.numbers("pass_at_4") == [(1, 0.25)]
        (other,) = set(place.run().data.metrics) - {"pass_at_4"}
        assert re.fullmatch("pass_at_4-[0-9a-f]{12}", other)
        assert place.numbers(other) == [(1, 0.5)]
        assert place.outcome() == "completed"

    def test_a_table_with_a_name_that_is_no_name_of_a_file(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {}, {"日本" * 100: Table(["x"], [[1]]), "..": Table(["x"], [[2]])})
        logger.finish("completed")
        paths = {entry["path"] for entry in json.loads(place.run().data.tags["mlflow.loggedArtifacts"])}
        assert sorted(place.artifact(path)["data"][0] for path in paths) == [[1, 1], [1, 2]]

    def test_a_table_goes_on_in_another_artifact(self, place, monkeypatch):
        wide = Table(["response"], [["x" * 9_000]] * 120)
        logger = started(place)
        for step in (1, 2):
            logger.write(step, NOW_S, {}, {"samples": wide})
        logger.write(3, NOW_S, {}, {"samples": Table(["other"], [[1]])})
        logger.finish("completed")
        assert {row[0] for row in place.artifact("tables/samples.json")["data"]} == {1}
        assert {row[0] for row in place.artifact("tables/samples-2.json")["data"]} == {2}
        assert place.artifact("tables/samples-3.json") == {"columns": ["step", "other"], "data": [[3, 1]]}
        shown = json.loads(place.run().data.tags["mlflow.loggedArtifacts"])
        assert shown[0] == {"path": "tables/samples.json", "type": "table"}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)  # load_table does not ask its own client
        assert place.client().load_table(place.experiment_id(), "tables/samples-3.json").shape == (1, 2)

    @pytest.mark.parametrize(
        ("outcome", "status"), [("completed", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED")]
    )
    def test_the_outcome_is_the_status(self, place, outcome, status):
        started(place).finish(outcome)
        assert place.run().info.status == status

    def test_the_link_leads_to_the_run(self, place):
        logger = started(place)
        run = place.run()
        assert logger.training_monitoring_link == (
            f"{place.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        )
        logger.finish("completed")
        assert place.logger(monitoring_link="http://mine").training_monitoring_link == "http://mine"

    def test_a_deleted_experiment_says_how_to_restore_it(self, place):
        started(place).finish("completed")
        place.client().delete_experiment(place.experiment_id())
        with pytest.raises(ConfigurationError, match="mlflow experiments restore --experiment-id"):
            started(place)

    async def test_a_server_that_dies_and_comes_back_gets_the_rest_once(
        self,
        gate,  # noqa: F811
        tmp_path,
        monkeypatch,
        mlflow_uri,  # noqa: F811
    ):
        monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "0.2")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        gate.behind, folder = mlflow_uri, tmp_path
        place = MLFlowPlace(folder, gate.url)
        rows = Table(["example_id", "grade"], [["a", 1.0], ["b", None]])
        async with RunRecorder(folder / "run", 6, place.logger(), strict=False) as recorder:
            await recorder.announce("a run", {}, [])
            for step in range(1, 4):
                await recorder.record(step, {"loss": 1.0 / step, "samples": rows})
            await recorder._run_log.flush()
            (fed,) = recorder._feeds
            while fed.num_waiting:
                await asyncio.sleep(0)
            gate.status = 500
            for step in range(4, 7):
                await recorder.record(step, {"loss": 1.0 / step, "samples": rows})
        ((message,),) = query(folder / "run", "SELECT message FROM events WHERE kind = 'tracker_incomplete'")
        assert message.startswith("mlflow has not got 3 of 6 records of the run; once it works again: `descant sync ")
        refused = invoke("sync", folder / "run", "--to", "mlflow")
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
        assert "answers 500" in refused.stderr
        gate.status = 200
        done = invoke("sync", folder / "run", "--to", "mlflow")
        assert "3 records delivered to mlflow; it had 3 before" in done.stdout, done.stderr
        assert place.numbers("loss") == [(step, 1.0 / step) for step in range(1, 7)]
        assert place.table("samples") == [[step, *row] for step in range(1, 7) for row in rows.rows]
        assert place.outcome() == "completed"

    @given(st.text(max_size=300) | st.text("./a@", max_size=6))
    def test_every_name_is_one_that_mlflow_takes(self, key):
        need("mlflow")
        from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

        _validate_metric_name(mlflow_name(key))
        assert len(mlflow_name(key)) <= MAX_ENTITY_KEY_LENGTH

    def test_names_that_mlflow_takes_stay(self):
        assert mlflow_name("validation/rewards/score/mean") == "validation/rewards/score/mean"


class TestTensorBoard:
    @pytest.fixture
    def place(self, tmp_path):
        need("tensorboard")
        return TensorBoardPlace(tmp_path)

    def test_a_long_name_is_shortened(self, tmp_path):
        need("tensorboard")
        place = TensorBoardPlace(tmp_path, "x" * 300)
        started(place).finish("completed")
        (folder,) = (tmp_path / "tb").iterdir()
        assert len(folder.name) == 200

    @given(st.text(max_size=40))
    def test_no_text_is_taken_for_markup(self, text):
        need("tensorboard")
        from tensorboard.plugin_util import markdown_to_safe_html

        as_line = "\n".join(printable(line) for line in text.split("\n"))
        shown = markdown_to_safe_html(markdown_table(["c"], [[text]]))
        assert [_text(cell).strip() for cell in re.findall("<td>(.*?)</td>", shown, flags=re.DOTALL)] == [
            as_line.strip()
        ]
        paragraph = markdown_to_safe_html(_markdown(text))
        assert _text(re.sub("^<p>|</p>$", "", paragraph)).strip() == as_line.strip()

    def test_two_runs_of_a_name_have_folders_of_their_own(self, place):
        started(place, run_id="first-run").finish("completed")
        started(place, run_id="second-run").finish("completed")
        assert sorted(path.name for path in (place.folder / "tb").iterdir()) == ["a run", "a run-second-r"]

    @pytest.mark.parametrize("name", ["", "..", "a/../../b", "/tmp/x"])
    def test_a_name_that_leads_elsewhere_is_refused(self, place, name):
        with pytest.raises(ConfigurationError, match="run_name="):
            TBMetricsLogger(name, place.folder)

    def test_numbers_beyond_float32_are_shown_as_infinity(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {"big": -1e300}, {})
        logger.finish("completed")
        assert place.numbers("big") == [(1, -math.inf)]


class TestTrackio:
    @pytest.fixture
    def place(self, tmp_path, trackio_dir):  # noqa: F811
        return TrackioPlace(tmp_path)

    def test_nothing_leaves_the_machine(self, place, monkeypatch):
        def refuse(*arguments):
            raise AssertionError(f"a connection to {arguments[1]}")

        monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
        monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=x")
        monkeypatch.setattr(socket.socket, "connect", refuse)
        logger = started(place)
        logger.write(1, NOW_S, {"loss": 0.5}, {})
        logger.finish("completed")
        assert place.numbers("loss") == [(1, 0.5)]

    def test_what_is_written_twice_after_a_failure_is_there_once(self, place):
        logger = started(place)
        for _ in range(2):
            logger.write(3, NOW_S, {"loss": 0.5}, {"samples": Table(["a"], [[1]])})
        logger.finish("completed")
        assert place.numbers("loss") == [(3, 0.5)]
        assert place.table("samples") == [[3, 1]]

    def test_a_database_that_is_made_anew_by_a_write_is_noticed(self, place, trackio_dir):  # noqa: F811
        logger = started(place)
        for step in (1, 2):
            logger.write(step, NOW_S, {"loss": 1.0 / step}, {})
        for path in trackio_dir.glob(f"{place._project()}*"):
            path.unlink() if path.is_file() else None
        storage = import_module("trackio.sqlite_storage").SQLiteStorage
        storage.init_db(place._project())  # between the check of the next write and the write itself
        logger.write(3, NOW_S, {"loss": 1 / 3}, {})
        with pytest.raises(FileNotFoundError, match="the run was deleted"):
            logger.finish("completed")
        logger.start(logger.run)
        assert logger.starts_empty
        for step in (1, 2, 3):
            logger.write(step, NOW_S, {"loss": 1 / step}, {})
        logger.finish("completed")
        assert sorted(place.numbers("loss")) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]

    def test_a_run_that_was_deleted_there_is_noticed(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {"loss": 1.0}, {})
        logger.finish("completed")
        import_module("trackio.sqlite_storage").SQLiteStorage.delete_run(place._project(), "a run")
        assert started(place).starts_empty

    def test_a_run_without_anything_to_send_ends(self, place):
        logger = started(place)
        logger.finish("completed")
        assert place.outcome() == "completed"

    def test_a_group_has_one_level_and_no_two_keys_one_name(self, place):
        logger = started(place)
        logger.write(1, NOW_S, {"v/rewards/score/mean": 0.5, "v/rewards.score.mean": 0.25, "loss": 1.0}, {})
        logger.finish("completed")
        assert place.numbers("v/rewards.score.mean") == [(1, 0.5)]
        (other,) = place.curves().keys() - {"v/rewards.score.mean", "loss"}
        assert re.fullmatch(r"v/rewards\.score\.mean-[0-9a-f]{12}", other)

    def test_on_a_network_file_system_it_writes_fragments(self, place, monkeypatch, trackio_dir):  # noqa: F811
        monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
        logger = started(place)
        logger.write(3, NOW_S, {"a loss": 0.5}, {})
        logger.finish("completed")
        lines = [line for path in trackio_dir.rglob("*.jsonl*") for line in path.read_text().splitlines()]
        assert [json.loads(line)["step"] for line in lines if "a loss" in line] == [3]

    def test_a_name_that_trackio_refuses_is_its_own_error(self, place):
        with pytest.raises(ValueError, match="reserved suffix"):
            TrackioLogger("my_system", "a run").start(RunInfo("x", "y", place.folder))


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("wandb", lambda: WandbLogger("p", "r")),
        ("mlflow", lambda: MLFlowLogger("p", "r", "sqlite:///x")),
        ("tensorboard", lambda: TBMetricsLogger("r", "x")),
        ("trackio", lambda: TrackioLogger("p", "r")),
    ],
)
def test_a_missing_package_is_an_error_with_the_command(package, make, monkeypatch):
    monkeypatch.setattr("descant.trackers.logger.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=re.escape(f"pip install 'descant[{package}]'")):
        make()


def test_the_modules_import_no_tracker():
    modules = ["wandb", "mlflow", "tensorboard", "trackio", "configured"]
    code = f"import sys, {', '.join(f'descant.trackers.{name}' for name in modules)}\n"
    code += "print(sorted({'wandb', 'mlflow', 'tensorboard', 'trackio', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_bound_without_room_for_text_is_refused():
    need("tensorboard")
    with pytest.raises(ConfigurationError, match="max_cell_length=10 is too short"):
        TBMetricsLogger("r", "x", max_cell_length=10)
