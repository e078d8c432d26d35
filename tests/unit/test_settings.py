"""Settings as plain values, and what datasets are: numbers stay numbers, files are known by their content."""

import copy
import gzip
import json
import os
import pickle
import re
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from descant import CombinedSchedule, CosineScheduler, StringThread, Tool, ToolCall, load_pairs, load_threads
from descant.data.origin import content_hash, describe_threads
from descant.settings import flattened, plain
from descant.trainers.lr_schedulers import peak_rate


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Slotted:
    width: int
    inner: object = None


class Kept:
    def __init__(self, rate, path, unkept=0, name="x"):
        self.rate, self.path, self.name = rate, path, name

    @property
    def unkept(self):
        raise AssertionError("settings run no code of the user's")


def warm_up(peak):
    def rate(progress):
        return peak * progress

    return rate


PLAIN = {
    "numbers": ([1, 0.5, True, None, np.float32(0.5), np.int64(3), Fraction(1, 4)], [1, 0.5, True, None, 0.5, 3, 0.25]),
    "texts": ([Path("/a/b"), Colour.RED, re.compile("a+"), "b"], ["/a/b", "red", "a+", "b"]),
    "sets": ({"b", "a"}, ["a", "b"]),
    "a dataset": (list(range(51)), {"num_items": 51}),
    "a class": (Slotted, "Slotted"),
    "slots": (
        Slotted(2, Slotted(3)),
        {"name": "Slotted", "width": 2, "inner": {"name": "Slotted", "width": 3, "inner": None}},
    ),
    "an object": (Kept(1e-3, Path("/c")), {"name": "Kept", "rate": 1e-3, "path": "/c"}),
    "a partial": (partial(pow, 2, mod=5), {"name": "pow", "arguments": [2], "mod": 5}),
    "a scheduler": (
        CosineScheduler(2e-3), {"name": "CosineScheduler", "lr": 2e-3, "warmup_percentage": 0.1, "decay_factor": 10.0}
    ),
    "a function": (
        warm_up(1e-3),
        {"name": "warm_up.<locals>.rate", "peak": 1e-3, "source": "def rate(progress):\n    return peak * progress"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_values_are_plain_with_their_types(kind):
    value, expected = PLAIN[kind]
    found = plain(value)
    assert found == expected
    assert json.loads(json.dumps(found)) == expected
    if isinstance(expected, list):
        assert [type(item) for item in found] == [type(item) for item in expected]


def test_a_lambda_is_its_line_and_a_circle_has_an_end():
    assert plain(lambda progress: 1e-3 * progress)["source"].startswith("assert plain(lambda progress: 1e-3")
    circle = Kept(1, None)
    circle.rate = circle
    assert json.dumps(plain(circle)).count('"Kept"') < 10
    assert plain(object()) == {"name": "object"}
    assert " at 0x" not in json.dumps(plain({"deep": {"deeper": open}}))


def test_the_learning_rate_of_a_scheduler_is_known_without_calling_it():
    def never(progress):
        raise AssertionError

    assert peak_rate(CosineScheduler(2e-3)) == 2e-3
    assert peak_rate(CombinedSchedule(never, CosineScheduler(1e-3), 0.1)) == 1e-3
    assert peak_rate(never) is None


def test_nested_settings_have_dotted_keys():
    settings = {
        "a": {"b": {"c": 1}, "e": {}},
        "callbacks": [{"name": "loss", "x": [1, 2]}],
        "files": [{"path": "p"}, {"path": "q"}],
    }
    assert flattened(settings) == {
        "a.b.c": 1, "a.e": {}, "callbacks.loss.x": [1, 2], "files.1.path": "p", "files.2.path": "q",
    }  # fmt: skip


# Datasets


def write(path, answers, pack=False):
    rows = [{"prompt": f"{number}?", "completion": answer} for number, answer in enumerate(answers)]
    text = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(text) if pack else text)
    return path


def test_a_dataset_is_known_by_its_files_and_its_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = write(Path("a.jsonl"), ["1", "2"]), write(Path("b.gz"), ["3"], pack=True)
    threads = [*load_threads(first), *load_threads(second)]
    monkeypatch.chdir("/")  # files are found again from anywhere
    found = describe_threads(threads)
    assert found["num_samples"] == 3
    assert [source["path"] for source in found["sources"]] == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.gz")]
    assert [source["num_samples"] for source in found["sources"]] == [2, 1]
    digest = os.popen(f"sha256sum {tmp_path}/a.jsonl").read()
    assert digest.startswith(found["sources"][0]["sha256"])
    assert "num_samples" not in describe_threads(threads[:2])["sources"][0]  # all of them are from there
    assert describe_threads(pickle.loads(pickle.dumps(threads))) == found
    assert (
        describe_threads([thread.with_weight_last_assistant_turn() for thread in threads])["sources"]
        == found["sources"]
    )
    assert describe_threads(copy.deepcopy(threads)) == found
    in_memory = [StringThread(thread.get_turns()) for thread in threads]
    assert "sources" not in describe_threads(in_memory)
    assert [thread.source for thread in threads] == ["a.jsonl:1", "a.jsonl:2", "b.gz:1"]


def test_a_file_that_has_changed_since_it_was_read_is_said_to_have(tmp_path):
    path = write(tmp_path / "a.jsonl", ["1", "2"])
    threads = load_threads(path)
    before = describe_threads(threads)
    write(path, ["1", "2", "3"])
    after = describe_threads(threads)
    assert after["content_hash"] == before["content_hash"]  # the threads are what they were
    assert after["sources"][0]["problem"] == "it has changed since it was read"
    assert "sha256" not in after["sources"][0]
    path.unlink()
    assert "could not be read again" in describe_threads(threads)["sources"][0]["problem"]


def test_a_large_file_is_sampled_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("descant.data.origin._MAX_HASHED", 10)
    monkeypatch.setattr("descant.data.origin._BLOCK", 4)
    path = write(tmp_path / "a.jsonl", ["1"] * 100)
    found = describe_threads(load_threads(path))["sources"][0]
    assert "sha256" not in found
    path.write_bytes(path.read_bytes().replace(b'"1"', b'"2"'))
    os.utime(path, ns=(0, 0))
    assert describe_threads(load_threads(path))["sources"][0]["sampled_sha256"] != found["sampled_sha256"]


CONVERSATION = StringThread().user("2+2=").assistant("4").user("3+3=").assistant("6")
OTHERS = {
    "another answer": StringThread().user("2+2=").assistant("5").user("3+3=").assistant("6"),
    "another cut": StringThread().user("2+2=").assistant("43").user("+3=").assistant("6"),
    "another role": StringThread().user("2+2=").system("4").user("3+3=").assistant("6"),
    "another weight": CONVERSATION.with_weight_last_assistant_turn(),
    "a tool": CONVERSATION.with_tools(Tool("add", "adds", {"type": "object"})),
    "a call": StringThread().user("2+2=").assistant("4").user("3+3=").assistant("6", [ToolCall("add", "{}")]),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_a_model_sees_is_in_the_hash(other):
    assert content_hash([OTHERS[other]]) != content_hash([CONVERSATION])
    assert content_hash([OTHERS[other], CONVERSATION]) != content_hash([CONVERSATION, OTHERS[other]])


def test_the_hash_is_the_same_on_every_machine():
    assert content_hash([CONVERSATION]) == "6557a6b44fb61d3c"
    assert content_hash([StringThread(CONVERSATION.get_turns(), {"id": 7}, source="x:1")]) == "6557a6b44fb61d3c"


def test_a_dataset_of_the_library_says_its_fingerprint(tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([{"prompt": "1?", "completion": "2"}])
    (source,) = describe_threads(load_threads(dataset))["sources"]
    assert source == {"fingerprint": dataset._fingerprint}
    pairs = [{"prompt": "1?", "chosen": "2", "rejected": "3"}]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(pairs))
    assert describe_threads([chosen for chosen, _ in load_pairs(path)])["sources"][0]["path"] == str(path)
