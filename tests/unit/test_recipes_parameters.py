"""Model, Dataset and Grader: plain strings in a config, checked before anything is loaded."""

import sys

import pytest

from descant import BaseGrader, ExactMatchGrader, StringThread
from descant.errors import ConfigurationError
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
    assert "model.precison = 'mixed': " in refusal(model={"model_key": "gpt2", "precison": "mixed"})


async def test_data_sets(tmp_path):
    (thread,) = await Config(data="train.jsonl").data.load()
    assert thread.completion() == "2"
    assert "did you mean 'train.jsonl'" in refusal(data="trian.jsonl")
    assert "is a directory" in refusal(data=str(tmp_path))
    assert "there is no file" in refusal(data="/nowhere/data")
    assert Config(data="allenai/tulu-3-sft").data.split == "train"


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
    assert "ready ones are contains, exact_match, numeric" in refusal(grader="exact")
    assert "ModuleNotFoundError" in refusal(grader="nowhere:grade")
    assert "has no attribute 'missing'" in refusal(grader="graders_of_mine:missing")
    assert "is 3; it must be a grader" in refusal(grader="graders_of_mine:number")
