"""The examples run as their users run them, on models that are built here."""

import json
import re
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trl
from support import query, samples, series
from tiny_model import byte_tokenizer
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, Qwen3Config

from descant.errors import ConfigurationError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run_example(tmp_path, monkeypatch):
    """Run a program of an example with arguments, in a folder of its own: the directory of the run."""
    monkeypatch.chdir(tmp_path)

    def run(path, *arguments):
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments), "--run-dir", "run"])
        runpy.run_path(str(EXAMPLES / path), run_name="__main__")
        return tmp_path / "run"

    return run


def score_by_rule(answer):
    """0 to 10: how many different letters there are."""
    return min(10, len(set(re.findall("[a-z]", answer.lower()))))


class JudgeServer(BaseHTTPRequestHandler):
    """An endpoint of OpenAI's form whose judge follows a rule; it is not there for the first three requests."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body["model"]))
        if len(self.server.seen) <= 3:
            self.send_error(503)
            return
        answer = json.loads(body["messages"][-1]["content"])[-1]
        assert answer["role"] == "assistant"
        score = score_by_rule(answer["content"])
        verdict = json.dumps({"score": score, "reason": f"{score} letters"})
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge_server():
    """It answers on this machine; ``seen`` has what it was asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), JudgeServer) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_http_judge_grades_every_answer(run_example, judge_server, gpt2_dir, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "a-key-of-no-service")
    url = f"http://127.0.0.1:{judge_server.server_port}/v1"
    arguments = ["--model", gpt2_dir, "--judge-url", url, "--judge-model", "by-rule", "--lr", "1e-2"]
    run_dir = run_example("http_judge/train.py", *arguments)

    rows = samples(run_dir, "validation")
    steps = [0, 4, 8, 12, 16]
    assert sorted({step for step, _ in rows}) == steps
    assert len(rows) == 12 * len(steps)
    for cells in rows.values():
        score = score_by_rule(cells["response"])
        assert (cells["grade"], cells["reasoning"]) == (score / 10, f"{score} letters")
    assert list(series(run_dir, "validation/rewards/score/mean")) == list(series(run_dir, "validation/loss")) == steps
    assert not series(run_dir, "validation/rewards/num_failed")
    assert {(path, model) for path, _, model in judge_server.seen} == {("/v1/chat/completions", "by-rule")}
    assert len(judge_server.seen) == len(rows) + 3
    assert {key for _, key, _ in judge_server.seen} == {"Bearer a-key-of-no-service"}
    assert b"a-key-of-no-service" not in (run_dir / "run.sqlite").read_bytes()
