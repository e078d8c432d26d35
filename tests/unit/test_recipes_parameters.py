"""Model, Dataset and Grader: plain strings in a config, checked before anything is loaded."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from descant import BaseGrader, ExactMatchGrader, StringThread
from descant.errors import ConfigurationError, DatasetError, ModelLoadError
from descant.recipes import Dataset, Grader, InputConfig, Model

MODULE = """
from descant import BaseGrader, ExactMatchGrader, Grade

class Mine(BaseGrader):
    def __init__(self):
        super().__init__("mine")
    async def grade(self, sample):
        return Grade(0.5, "mine")

ready = ExactMatchGrader("other")

def brevity(thread):
    return 1 / len(thread.last_content())

number = 3
"""


class Config(InputConfig):
    model: Model | None = None
    data: Dataset | None = None
    grader: Grader | None = None


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "graders_of_mine.py").write_text(MODULE)
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    yield
    sys.modules.pop("graders_of_mine", None)


def refusal(**values):
    with pytest.raises(ConfigurationError) as caught:
        Config.from_values(values)
    return str(caught.value)


def test_strings_tables_and_instances_are_the_same():
    assert Config(data="train.jsonl").data == Dataset("train.jsonl") == Config(data={"dataset_key": "train.jsonl"}).data
    assert Config(model=Model("gpt2")).model == Config(model="gpt2").model
    assert len({Model("gpt2"), Model("gpt2"), Model("Qwen/Qwen3-0.6B")}) == 2
    assert len({Dataset("train.jsonl"), Dataset("train.jsonl")}) == len({Grader("numeric"), Grader("numeric")}) == 1
    assert str(Config(model="gpt2").model) == "gpt2"
    assert Config(model={"model_key": "gpt2", "precision": "bfloat16"}).model.precision == "bfloat16"


def test_models_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(model="empty")
    assert "there is no model directory './nowhere'" in refusal(model="./nowhere")
    assert "there is no model directory" in refusal(model="a/b/c")
    assert "there is no model directory" in refusal(model="")
    assert "must be 'float32', 'mixed' or 'bfloat16'" in refusal(model={"model_key": "gpt2", "precision": "half"})
    assert "model" in refusal(model=3)
    assert "did you mean 'precision'?" in refusal(model={"model_key": "gpt2", "precison": "mixed"})
    assert "must be a string, or a table with model_key, precision" in refusal(model=[])
    assert "model.kv_cache_len = 0: must be greater than 0" in refusal(model={"model_key": "gpt2", "kv_cache_len": 0})
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").touch()
    assert "; did you mean 'models/tiny'?" in refusal(model="./models/tny")


async def test_a_name_that_could_be_a_hub_id_and_is_no_model_is_said_with_what_was_meant(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").touch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelLoadError, match=r"cannot load 'tny'.*; did you mean 'tiny'\?"):
        await Model("tny").spawn_inference("a")


async def test_data_sets(tmp_path):
    (thread,) = await Config(data="train.jsonl").data.load()
    assert thread.completion() == "2"
    assert "did you mean 'train.jsonl'" in refusal(data="trian.jsonl")
    assert "is a directory" in refusal(data=str(tmp_path))
    assert "there is no file" in refusal(data="/nowhere/data")
    assert Config(data="allenai/tulu-3-sft").data.split == "train"


TALK = {"messages": [["user", "a"], ["assistant", "b"], ["user", "c"], ["assistant", "d"]]}


async def test_data_sets_train_the_last_turn_of_a_conversation_or_all_of_them(tmp_path):
    Path("talk.jsonl").write_text(json.dumps(TALK))
    (thread,) = await Config(data="talk.jsonl").data.load()
    assert thread.get_turn_weights() == [0, 0, 0, 1]
    (thread,) = await Config(data={"dataset_key": "talk.jsonl", "trained_turns": "all"}).data.load()
    assert thread.get_turn_weights() == [0, 1, 0, 1]
    assert "trained_turns" in refusal(data={"dataset_key": "talk.jsonl", "trained_turns": "first"})


async def test_prompts_and_pairs_of_data_sets():
    Path("talk.jsonl").write_text(json.dumps({"messages": [*TALK["messages"], ["assistant", "e"]]}) + "\n")
    (prompt,) = await Dataset("talk.jsonl").load_prompts()
    assert prompt.get_turns() == [("user", "a"), ("assistant", "b"), ("user", "c")]
    Path("pairs.jsonl").write_text('{"input": [["user", "x"]], "preferred_completion": "a", "other_completion": "b"}')
    ((chosen, rejected),) = await Dataset("pairs.jsonl").load_pairs()
    assert (chosen.completion(), rejected.completion()) == ("a", "b")
    with pytest.raises(DatasetError, match="read it with load_pairs"):
        await Dataset("pairs.jsonl").load()


async def test_a_data_set_that_is_neither_here_nor_on_the_hub_is_said_with_what_was_meant(monkeypatch):
    def load_dataset(name, split):
        raise FileNotFoundError(f"{name} is not on the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("descant.recipes.parameters.find_spec", lambda name: True)
    data = Config(data="train").data
    with pytest.raises(DatasetError, match=r"train is not on the hub; did you mean 'train\.jsonl'"):
        await data.load()
    assert "not an empty string" in refusal(data="")


def test_a_data_set_of_the_hub_needs_its_library(monkeypatch):
    monkeypatch.setattr("descant.recipes.parameters.find_spec", lambda name: None)
    assert "pip install datasets" in refusal(data="allenai/tulu-3-sft")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exact_match", 1.0),
        ("graders_of_mine:Mine", 0.5),
        ("graders_of_mine:ready", 1.0),
        ("graders_of_mine:brevity", 0.5),
    ],
)
async def test_graders(key, value):
    grader = await Config(grader=key).grader.load()
    assert isinstance(grader, BaseGrader)
    thread = StringThread(metadata={"reference": "42"}).user("6*7=").assistant("42")
    assert (await grader.grade(thread)).value == value


async def test_a_ready_grader_is_new_each_time():
    grader = Grader("exact_match")
    first, second = await grader.load(), await grader.load()
    assert isinstance(first, ExactMatchGrader)
    assert first is not second


def test_graders_that_cannot_be():
    assert "eady ones are contains, exact_match, numeric" in refusal(grader="x")
    assert "did you mean 'exact_match'?" in refusal(grader="exact-match")
    assert "ModuleNotFoundError" in refusal(grader="nowhere:grade")
    Path("broken.py").write_text("x = 1\nx / 0\n")
    assert "ZeroDivisionError: division by zero (" in refusal(grader="broken:grade")
    assert "broken.py, line 2)" in refusal(grader="broken:grade")
    assert "has no attribute 'missing'" in refusal(grader="graders_of_mine:missing")
    assert "is 3; it must be a grader" in refusal(grader="graders_of_mine:number")
