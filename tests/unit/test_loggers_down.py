"""Servers of trackers that are down, hang, or die on the way, and processes that are killed: nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from support import query
from test_cli_runs import invoke
from trackers import MLFlowPlace, TrackioPlace, need, trackio_dir  # noqa: F401 - one is a fixture

from descant.errors import ConfigurationError
from descant.runner.recorder import RunRecorder
from descant.table import Table
from descant.trackers import feed as feed_module
from descant.trackers import server as server_module
from descant.trackers.mlflow import MLFlowLogger
from descant.trackers.server import address_of, check_answers
from descant.trackers.wandb import WandbLogger


class Gate:
    """A server on this machine that answers with a status, not at all, or what the server behind it answers."""

    def __init__(self):
        self.status, self.behind, self.released = 200, None, threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if gate.status is None:
                    gate.released.wait()
                status, answer = gate.status or 503, b"{}"
                if gate.behind and gate.status == 200:
                    headers = {"content-type": self.headers.get("content-type") or "application/json"}
                    request = Request(gate.behind + self.path, body or None, headers, method=self.command)
                    try:
                        with urlopen(request, timeout=30) as response:
                            answer = response.read()
                    except HTTPError as error:
                        status, answer = error.code, error.read()
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = handle_any

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "0.2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(feed_module, "_FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(feed_module, "_QUIET_S", 0.0)
    return tmp_path


@pytest.mark.parametrize("status", [200, 401, 404, 500, 503])
def test_any_answer_below_500_will_do(gate, status):
    gate.status = status
    if status < 500:
        check_answers(gate.url)
        return
    with pytest.raises(ConnectionError, match=f"answers {status}"):
        check_answers(gate.url)


def test_a_server_that_hangs_or_is_not_there(gate, monkeypatch):
    monkeypatch.setattr(server_module, "_TIMEOUT_S", 0.05)
    gate.status = None
    with pytest.raises(ConnectionError, match="does not answer: timed out"):
        check_answers(gate.url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConnectionError, match="does not answer"):
        check_answers(address.replace("//", "//me:hunter2@"))
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:port does not answer"):
        check_answers("http://me:hunter2@127.0.0.1:port")
    assert address_of("https://me:hunter2@host:1/path/") == "https://host:1/path"


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
async def test_a_tracker_that_is_down_is_said_and_the_run_goes_on(gate, folder, monkeypatch, tracker, capsys):
    need(tracker)
    gate.status = 500
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", gate.url)
    with_password = gate.url.replace("//", "//me:hunter2@")
    logger = MLFlowLogger("p", "r", with_password) if tracker == "mlflow" else WandbLogger("p", "r")
    async with RunRecorder(folder / "run", 1, logger, strict=False) as recorder:
        await recorder.announce("a run", {}, [])
        await recorder.record(1, {"loss": 1.0})
    (failed,) = query(folder / "run", "SELECT message FROM events WHERE kind = 'tracker_failed'")
    assert "answers 500; it is tried again, and nothing is lost" in failed[0]
    assert f"`descant sync run --to {tracker}`" in capsys.readouterr().err
    assert b"hunter2" not in (folder / "run" / "run.sqlite").read_bytes()


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from descant.trackers import feed
from descant.runner.recorder import RunRecorder
from descant.trackers.trackio import TrackioLogger
from descant.table import Table

feed._NUM_RECORDS_AT_ONCE = 8

async def main(run_dir, project):
    logger = TrackioLogger(project, "a run")
    write = logger.write
    def write_and_die(step, *rest):
        write(step, *rest)
        if step == 10:  # in the middle of a batch, whose place is not saved
            os.kill(os.getpid(), signal.SIGKILL)
    logger.write = write_and_die
    async with RunRecorder(run_dir, 12, logger, strict=False) as recorder:
        await recorder.announce("a run", {}, [])
        for step in range(1, 13):
            await recorder.record(step, {"loss": 1.0 / step, "samples": Table(["x"], [[step]])})
            await recorder._run_log.flush()
        await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def test_a_run_that_is_killed_while_it_delivers_arrives_once(folder, trackio_dir):  # noqa: F811
    place = TrackioPlace(folder)
    environment = {**os.environ, "TRACKIO_DIR": str(trackio_dir), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, folder / "run", place._project()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for path in (folder / "run").iterdir():
        os.utime(path, (1e9, 1e9))
    done = invoke("sync", folder / "run", "--to", "trackio")
    assert (done.exit_code, done.stderr) == (0, "")
    assert place.numbers("loss") == [(step, 1.0 / step) for step in range(1, 13)]
    assert place.table("samples") == [[step, step] for step in range(1, 13)]
    assert place.outcome() == "interrupted"


@pytest.mark.parametrize("uri", ["", None, "mlruns", "./mlruns", "/data/mlruns", "file:./mlruns", "file:///data"])
def test_mlflow_does_not_write_to_folders_or_to_nowhere(folder, uri, monkeypatch):
    need("mlflow")
    with pytest.raises(ConfigurationError, match=r"sqlite:///mlflow\.db"):
        MLFlowLogger("p", "r", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if uri:
        assert MLFlowLogger("p", "r", uri).tracking_uri == uri
    assert list(folder.iterdir()) == []


def test_mlflow_writes_to_a_folder_where_it_is_allowed(folder, monkeypatch):
    need("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = MLFlowPlace(folder, f"file:{folder}/store")
    place.experiment = "mine"
    logger = place.logger()
    logger({"loss": 0.5, "samples": Table(["a"], [[1]])})
    logger.close()
    assert place.numbers("loss") == [(0, 0.5)]
    assert place.table("samples") == [[0, 1]]
    assert [path.name for path in folder.iterdir() if path.name != "downloads"] == ["store"]
