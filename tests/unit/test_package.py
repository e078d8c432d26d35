"""The public names, what importing them costs, and the layers."""

import subprocess
import sys
from pathlib import Path

import pytest

import descant
import descant.testing

SOURCE = Path(descant.__file__).parent
HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich")


def modules_after(code):
    """The top-level modules that a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_public_names():
    assert sorted(descant.__all__) == sorted(descant._HOME_OF) == [
        "BaseGrader", "BestModelCallback", "CallbackRunner", "CheckpointCallback", "CombinedGrader",
        "CombinedSchedule", "CompositeLogger", "ContainsGrader", "CosineScheduler",
        "CosineSchedulerWithoutWarmup", "EarlyStoppingCallback", "EvaluationPlacement", "ExactMatchGrader",
        "GenerateSamplesCallback", "Grade",
        "GraderEvalCallback", "IgnoreGradeException", "InferenceModel", "InputConfig",
        "JSONSchemaGrader", "JobNotifier", "Logger", "MLFlowLogger", "MetricSpec", "MetricWatch", "ModelBuilder",
        "ModelCallback", "NumericGrader", "RecipeCallback", "RecipeContext", "RegexGrader", "RemoteCalls", "RunOptions",
        "RunReader",
        "RunView", "SFT",
        "SimpleProgressNotifier", "StageNotifier", "StdoutJobNotifier", "StdoutLogger", "StdoutStageNotifier",
        "StringThread", "StringTurn", "TBMetricsLogger", "Table", "TokenizedThread", "Tool", "ToolCall",
        "TrackerLogger", "TrackioLogger", "TrainingModel", "TrainingResult", "ValidationLossCallback",
        "WandbLogger", "at", "callback", "every", "every_minutes", "every_steps", "find_contamination",
        "get_prod_logger", "live_model", "load_pairs", "load_threads", "recipe_main", "train_validation_split",
    ]  # fmt: skip
    for name in descant.__all__:
        value = getattr(descant, name)
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        descant.Missing


def test_importing_descant_imports_nothing_heavy():
    assert not modules_after("import descant") & set(HEAVY)


@pytest.mark.parametrize(
    "name",
    [
        "StringThread",
        "Table",
        "load_threads",
        "BaseGrader",
        "RecipeCallback",
        "get_prod_logger",
        "recipe_main",
        "CallbackRunner",
        "SFT",
        "GraderEvalCallback",
    ],
)
def test_light_names_do_not_import_torch(name):
    assert not modules_after(f"from descant import {name}") & {"torch", "transformers", "numpy"}


def test_the_names_of_a_recipe_do_not_import_torch():
    """So that ``descant run my_sft.py --help``, or an error in its config, takes no five seconds."""
    template = (SOURCE / "recipes" / "template.py").read_text()
    assert not modules_after(template.partition("class Config")[0]) & {"torch", "transformers", "numpy"}


def test_the_conformance_kit_is_imported_when_it_is_used():
    assert not modules_after("import descant.testing") & set(HEAVY)
    assert set(descant.testing.__all__) == set(descant.testing._HOME_OF)
    for name in descant.testing.__all__:
        assert getattr(descant.testing, name).__doc__, name


def test_layers():
    run = subprocess.run([Path(sys.executable).parent / "lint-imports", "--no-logo"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
