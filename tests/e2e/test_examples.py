"""The examples run as their users run them, on models that are built here."""

import json
import re
import runpy
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch
import trl
from ipykernel.kernelspec import write_kernel_spec
from support import query, samples, series
from tiny_model import byte_tokenizer, save_tiny_qwen3
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


def test_an_http_judge_grades_every_answer(run_example, judge_server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "a-key-of-no-service")
    url = f"http://127.0.0.1:{judge_server.server_port}/v1"
    arguments = [
        "--model",
        save_tiny_qwen3(tmp_path / "tiny"),
        "--judge-url",
        url,
        "--judge-model",
        "by-rule",
        "--lr",
        "1e-2",
    ]
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


@pytest.fixture
def tool_model(tmp_path):
    """A Qwen3 with the template of Qwen3-Instruct, and tokens that are made from what it renders."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_instruct_2507.jinja").read_text()
    threads = runpy.run_path(str(EXAMPLES / "tool_calls" / "train.py"))["conversations"]()
    schemas = [tool.as_schema() for tool in threads[0].tools]
    texts = [
        tokenizer.apply_chat_template(t.chat_messages(), tools=schemas, chat_template=template, tokenize=False)
        for t in threads
    ]
    tokenizer = tokenizer.train_new_from_iterator(texts, 1024)
    tokenizer.chat_template = template
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_tool_calls_are_learnt_and_checked(run_example, tool_model, capsys):
    run_dir = run_example("tool_calls/train.py", "--model", tool_model, "--lr", "1e-2", "--epochs", "4")
    right = {grader: series(run_dir, f"validation/rewards/{grader}/score/mean") for grader in ("tool", "arguments")}
    assert right["tool"][0] == right["arguments"][0] == 0
    last = max(right["tool"])
    assert right["tool"][last] >= 0.9
    assert f"the right tool in {right['tool'][last]:.0%} of the calls" in capsys.readouterr().out
    rows = [cells for (step, _), cells in samples(run_dir, "validation").items() if step == last]
    assert len(rows) == 20
    for cells in rows:
        wanted, made = cells["reference"], cells["response"]
        assert wanted.startswith("<tool_call>")
        assert cells["grade"] == (1.0 if made == wanted else 0.5 if wanted[:30] == made[:30] else 0.0), cells
        assert cells["reasoning"].startswith("tool ")


@pytest.mark.parametrize("mode", ["inline", "overlap"])
def test_lora_inside_trl(run_example, qwen3_dir, mode, capsys):
    arguments = ["--model", qwen3_dir, "--max-steps", "5", "--callback-mode", mode, "--use-cpu", "--lr", "1e-2"]
    run_dir = run_example("trl_lora/train.py", *arguments)
    assert list(series(run_dir, "validation/rewards/score/mean")) == list(range(6))
    losses = series(run_dir, "validation/loss")
    assert losses[5] < losses[0]
    assert len(samples(run_dir, "validation")) == 200 * 6
    assert query(run_dir, "SELECT count(*) FROM events WHERE kind LIKE '%failed'") == [(0,)]
    assert f"descant show {run_dir}" in capsys.readouterr().out


def test_lora_in_the_background_is_refused_in_the_words_of_the_example(run_example, qwen3_dir):
    with pytest.raises(ConfigurationError) as refusal:
        run_example("trl_lora/train.py", "--model", qwen3_dir, "--callback-mode", "background", "--use-cpu")
    text = " ".join((EXAMPLES / "trl_lora" / "train.py").read_text().split('"""')[1].split())
    shown = text[text.index("ConfigurationError: ") + len("ConfigurationError: ") :]
    before, after = shown.split("(...)")
    assert str(refusal.value).startswith(before)
    assert str(refusal.value).endswith(after)


def test_the_notebook(tmp_path, monkeypatch):
    """All cells run, and it ends with a picture and tables."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")  # this Python's, and not one that was registered
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples") / "notebook"
    save_tiny_qwen3(folder / "tiny-qwen3")
    notebook = nbformat.read(folder / "first_look.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    answers, by_step, costs = [data["text/html"] for data in shown if "<table" in data.get("text/html", "")]
    assert all(column in answers for column in ("prompt", "response", "reference", "grade"))
    assert all(f"<th>{step}</th>" in by_step for step in (0, 24, 48, 72, 96, 120))
    assert "validation" in costs
