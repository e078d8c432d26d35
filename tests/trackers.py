"""Each tracker started for real, and what it has stored read back through its own reader."""

import html
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec

import pytest

from descant.text import printable
from descant.trackers.logger import OWN_GROUP
from descant.trackers.mlflow import MLFlowLogger, mlflow_name
from descant.trackers.rows import without_nan
from descant.trackers.tensorboard import TBMetricsLogger
from descant.trackers.trackio import TrackioLogger
from descant.trackers.wandb import WandbLogger


class Place:
    """Where a tracker writes, and how to read it: numbers by (key, step), tables as rows, strings, config, outcome.

    ``curves`` and ``tables`` are all numbers and all tables that a tracker has, under its own names; ``groups`` has the
    group of every run by its name.
    """

    def __init__(self, folder, run_name="a run"):
        self.folder = folder
        self.run_name = run_name

    def name(self, key):
        """The name under which the tracker has a key."""
        return key

    def tables(self):
        return {name: self.table(name) for name in self.table_names()}


class TensorBoardPlace(Place):
    def logger(self, **options):
        return TBMetricsLogger(self.run_name, self.folder / "tb", **options)

    def _accumulator(self):
        module = import_module("tensorboard.backend.event_processing.event_accumulator")
        folder = self.folder / "tb" / self.run_name
        accumulator = module.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        accumulator.Reload()
        return accumulator

    def numbers(self, key):
        return [(event.step, event.value) for event in self._accumulator().Scalars(key)]

    def curves(self):
        accumulator = self._accumulator()
        names = accumulator.Tags()["scalars"]
        return {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in names}

    def table_names(self):
        return set(self._accumulator().Tags()["tensors"]) - {f"{OWN_GROUP}/config", f"{OWN_GROUP}/outcome"}

    def times(self, key):
        return [event.wall_time for event in self._accumulator().Scalars(key)]

    def shown(self, key):
        """The HTML that TensorBoard's text page makes of each text."""
        to_html = import_module("tensorboard.plugin_util").markdown_to_safe_html
        events = self._accumulator().Tensors(key)
        return [(event.step, to_html(event.tensor_proto.string_val[0].decode())) for event in events]

    def table(self, key):
        rows = []
        for _, shown in self.shown(key):
            cells = re.findall(r"<td>(.*?)</td>", shown, flags=re.DOTALL)
            width = shown.count("<th>")
            rows += [[_text(cell) for cell in cells[at : at + width]] for at in range(0, len(cells), width)]
        return rows

    def as_shown(self, row):
        """Cells as text, with the codes of control characters."""
        return ["\n".join(printable(line) for line in ("" if cell is None else str(cell)).split("\n")) for cell in row]

    def strings(self, key):
        return [(step, _text(re.fullmatch(r"<p>(.*)</p>", shown)[1])) for step, shown in self.shown(key)]

    def config(self):
        return {name: value for name, value in self.table(f"{OWN_GROUP}/config")}  # noqa: C416 - rows are lists

    def outcome(self):
        return self.strings(f"{OWN_GROUP}/outcome")[-1][1]

    def num_runs(self):
        return len({path.parent for path in (self.folder / "tb").rglob("events.out.tfevents.*")})

    def groups(self):
        """TensorBoard has none: runs whose names begin alike are chosen together by its filter."""
        paths = {path.parent for path in (self.folder / "tb").rglob("events.out.tfevents.*")}
        return {path.name: path.name.removesuffix("-2") for path in paths}


class TrackioPlace(Place):
    def __init__(self, folder, run_name="a run", project=None):
        super().__init__(folder, run_name)
        self._given_project = project

    def logger(self, **options):
        return TrackioLogger(self._project(), self.run_name, **options)

    def _project(self):
        return self._given_project or "project-" + re.sub(r"\W", "-", str(self.folder))[-60:]

    def _runs(self):
        return [run for run in import_module("trackio").Api().runs(self._project()) if run.name == self.run_name]

    def _run(self):
        (run,) = self._runs()
        return run

    def _logs(self):
        run = self._run()
        return import_module("trackio.sqlite_storage").SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)

    def name(self, key):
        group, slash, rest = key.partition("/")
        return f"__{key}" if key in ("step", "time") else f"{group}{slash}{rest.replace('/', '.')}"

    def numbers(self, key):
        return [(log["step"], log[key]) for log in self._logs() if key in log]

    def curves(self):
        curves = defaultdict(list)
        for log in self._logs():
            for name in log.keys() - {"step", "timestamp"} - self._tables_in(log):
                curves[name].append((log["step"], log[name]))
        return curves

    @staticmethod
    def _tables_in(log):
        return {name for name, value in log.items() if isinstance(value, dict)}

    def table_names(self):
        return set().union(*map(self._tables_in, self._logs()))

    def times(self, key):
        from datetime import datetime

        return [datetime.fromisoformat(log["timestamp"]).timestamp() for log in self._logs() if key in log]

    strings = numbers

    def table(self, key):
        return [list(row.values()) for _, table in self.numbers(key) for row in table["_value"]]

    def as_shown(self, row):
        return [without_nan(cell) for cell in row]

    def config(self):
        return self._run().config

    def outcome(self):
        return self.config()["outcome"]

    def num_runs(self):
        return len(self._runs())

    def groups(self):
        return {run.name: run.config["_Group"] for run in import_module("trackio").Api().runs(self._project())}


class WandbPlace(Place):
    def logger(self, **options):
        return WandbLogger("a project", self.run_name, **options)

    def _records(self):
        """What is in the offline files, in order; W&B ends them soon after a run has been finished."""
        deadline = time.monotonic() + 30
        while True:
            paths = sorted(self.folder.rglob("run-*.wandb"), key=lambda path: path.parent.stat().st_ctime_ns)
            records = {path: list(_offline_records(path.read_bytes())) for path in paths}
            ended = [found and found[-1].WhichOneof("record_type") == "exit" for found in records.values()]
            if ended and all(ended):
                return [(path, record) for path, found in records.items() for record in found]
            assert time.monotonic() < deadline, records
            time.sleep(0.01)

    def _items(self):
        for path, record in self._records():
            if record.WhichOneof("record_type") == "history":
                yield path, record.history.item

    def _rows(self):
        for path, items in self._items():
            yield path, {_item_key(item): json.loads(item.value_json) for item in items}

    def name(self, key):
        return "metric_step" if key == "_step" else key

    def numbers(self, key):
        return [(row["progress/step"], float(row[key])) for _, row in self._rows() if key in row]

    def curves(self):
        curves = defaultdict(list)
        for _, items in self._items():
            row = {_item_key(item): json.loads(item.value_json) for item in items if len(item.nested_key) < 2}
            for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
                curves[name].append((row["progress/step"], float(row[name])))
        return curves

    def table_names(self):
        return {item.nested_key[0] for _, items in self._items() for item in items if len(item.nested_key) > 1}

    def times(self, key):
        return [row["_timestamp"] for _, row in self._rows() if key in row]

    def strings(self, key):
        return [(row["progress/step"], row[key]) for _, row in self._rows() if key in row]

    def table(self, key):
        rows = []
        for path, row in self._rows():
            if f"{key}/path" in row:
                rows += json.loads((path.parent / "files" / row[f"{key}/path"]).read_text("utf-8"))["data"]
        return rows

    def as_shown(self, row):
        return [without_nan(cell) for cell in row]

    def summary(self):
        values = {}
        for _, record in self._records():
            if record.WhichOneof("record_type") == "summary":
                values |= {_item_key(item): json.loads(item.value_json) for item in record.summary.update}
        return values

    def config(self):
        values = {}
        for _, record in self._records():
            kind = record.WhichOneof("record_type")
            if kind in ("run", "config"):
                config = record.run.config if kind == "run" else record.config
                values |= {_item_key(item): json.loads(item.value_json) for item in config.update}
        return values

    def outcome(self):
        return self.summary()["outcome"]

    def exit_codes(self):
        return [r.exit.exit_code for _, r in self._records() if r.WhichOneof("record_type") == "exit"]

    def num_runs(self):
        return len({r.run.run_id for _, r in self._records() if r.WhichOneof("record_type") == "run"})

    def groups(self):
        records = [r for _, r in self._records() if r.WhichOneof("record_type") == "run"]
        return {r.run.display_name: r.run.run_group for r in records}


class MLFlowPlace(Place):
    def __init__(self, folder, uri, run_name="a run"):
        super().__init__(folder, run_name)
        self.uri = uri
        self.experiment = str(folder)

    def logger(self, **options):
        return MLFlowLogger(self.experiment, self.run_name, self.uri, **options)

    def client(self):
        return import_module("mlflow").MlflowClient(self.uri)

    def _runs(self):
        experiment = self.client().get_experiment_by_name(self.experiment)
        return self.client().search_runs([experiment.experiment_id])

    def experiment_id(self):
        return self.client().get_experiment_by_name(self.experiment).experiment_id

    def run(self):
        (run,) = self._runs()
        return run

    def name(self, key):
        return mlflow_name(key)

    def numbers(self, key):
        history = self.client().get_metric_history(self.run().info.run_id, key)
        largest = sys.float_info.max  # as MLflow stores infinity
        return [(m.step, float("inf") if m.value == largest else m.value) for m in history]

    def curves(self):
        return {name: self.numbers(name) for name in self.run().data.metrics}

    def table_names(self):
        return {re.sub(r"(-\d+)?\.json$", "", path.removeprefix("tables/")) for path in self._table_paths()}

    def _table_paths(self, folder="tables"):
        artifacts = self.client().list_artifacts(self.run().info.run_id, folder)
        below = [path for artifact in artifacts if artifact.is_dir for path in self._table_paths(artifact.path)]
        return [*below, *(artifact.path for artifact in artifacts if not artifact.is_dir)]

    def times(self, key):
        return [m.timestamp / 1000 for m in self.client().get_metric_history(self.run().info.run_id, key)]

    def artifact(self, path, tmp="downloads"):
        (self.folder / tmp).mkdir(exist_ok=True)
        with open(self.client().download_artifacts(self.run().info.run_id, path, str(self.folder / tmp))) as file:
            return json.load(file)

    def strings(self, key):
        return [(step, value) for step, name, value in self.artifact("tables/strings.json")["data"] if name == key]

    def table(self, key):
        """Of all its parts, one behind the other."""
        first = f"tables/{mlflow_name(key)}.json"
        later = (first.replace(".json", f"-{number}.json") for number in itertools.count(2))
        there = self._table_paths()
        paths = itertools.takewhile(there.__contains__, itertools.chain([first], later))
        return [row for path in paths for row in self.artifact(path)["data"]]

    def as_shown(self, row):
        return [without_nan(cell) for cell in row]

    def config(self):
        return self.run().data.params

    def outcome(self):
        return self.run().data.tags["descant.outcome"]

    def num_runs(self):
        return len(self._runs())

    def groups(self):
        return {run.info.run_name: run.data.tags["descant.group"] for run in self._runs()}


def _offline_records(data):
    """Records of a LevelDB log behind a header of seven bytes."""
    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    at, parts = 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = record_type()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _item_key(item):
    return item.key or "/".join(item.nested_key)


def _text(shown):
    """What a browser shows of a piece of HTML: no tags may be left but breaks."""
    assert not re.search(r"<(?!br>)", shown), shown
    return html.unescape(shown.replace("<br>", "\n")).replace("\xa0", " ")


def start_mlflow_server(folder):
    """An MLflow server with SQLite on a free port of this machine: its address, and how to stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    log = open(folder / "server.log", "wb")  # noqa: SIM115 - the server writes to it as long as it runs
    environment = {**os.environ, "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
    wait_for_port(port, server, folder / "server.log")

    def stop():
        os.killpg(server.pid, signal.SIGKILL)  # nobody needs its data any more, and it may take long to end in order
        server.wait(60)
        log.close()

    return f"http://127.0.0.1:{port}", stop


def wait_for_port(port, server, log):
    """Return when something answers on a port of this machine; fail with the log if the server ends."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no server: {log.read_text()[-2000:]}")
            time.sleep(0.1)


def need(package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'descant[{package}]'")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """Where an MLflow server answers. It is a fixture of conftest.py: one that is imported into test files is made anew
    in each of them."""
    need("mlflow")
    uri, stop = start_mlflow_server(tmp_path_factory.mktemp("mlflow"))
    yield uri
    stop()


@pytest.fixture(scope="session")
def mlflow_uri(mlflow_server):
    """Where an MLflow server answers."""
    return mlflow_server


@pytest.fixture(scope="session")
def trackio_dir():
    """Trackio's folder, which all tests of a process share."""
    need("trackio")
    return import_module("trackio.utils").TRACKIO_DIR
