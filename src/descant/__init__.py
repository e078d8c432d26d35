"""descant: post-training for language models, with training callbacks that are exact, neutral and honest.

Importing the package imports nothing heavy: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from descant.callbacks.base import RecipeCallback, RunView
    from descant.callbacks.best_model import BestModelCallback
    from descant.callbacks.checkpoint import CheckpointCallback
    from descant.callbacks.early_stopping import EarlyStoppingCallback
    from descant.callbacks.function_callback import callback
    from descant.callbacks.generate_samples import GenerateSamplesCallback
    from descant.callbacks.grader_eval import GraderEvalCallback
    from descant.callbacks.model_callback import ModelCallback
    from descant.callbacks.runner import CallbackRunner
    from descant.callbacks.validation_loss import ValidationLossCallback
    from descant.errors import IgnoreGradeException
    from descant.graders.base import BaseGrader, Grade
    from descant.graders.combined_grader import CombinedGrader
    from descant.graders.contains import ContainsGrader
    from descant.graders.exact_match import ExactMatchGrader
    from descant.graders.json_schema import JSONSchemaGrader
    from descant.graders.numeric import NumericGrader
    from descant.graders.regex_grader import RegexGrader
    from descant.graders.remote_calls import RemoteCalls
    from descant.models.builder import ModelBuilder
    from descant.models.inference import InferenceModel
    from descant.models.live_model import live_model
    from descant.models.training import TrainingModel
    from descant.schedule import at, every, every_minutes, every_steps
    from descant.table import Table
    from descant.threads.contamination import find_contamination
    from descant.threads.datasets import load_pairs, load_threads
    from descant.threads.split import train_validation_split
    from descant.threads.thread import StringThread, StringTurn
    from descant.threads.tokenized import TokenizedThread
    from descant.threads.tools import Tool, ToolCall
    from descant.trainers.loop import TrainingResult
    from descant.trainers.lr_schedulers import CombinedSchedule, CosineScheduler, CosineSchedulerWithoutWarmup
    from descant.trainers.sft import SFT

__version__ = "0.1.0"

_HOME_OF = {
    "BaseGrader": "graders.base",
    "BestModelCallback": "callbacks.best_model",
    "CallbackRunner": "callbacks.runner",
    "CheckpointCallback": "callbacks.checkpoint",
    "CombinedGrader": "graders.combined_grader",
    "CombinedSchedule": "trainers.lr_schedulers",
    "ContainsGrader": "graders.contains",
    "CosineScheduler": "trainers.lr_schedulers",
    "CosineSchedulerWithoutWarmup": "trainers.lr_schedulers",
    "EarlyStoppingCallback": "callbacks.early_stopping",
    "ExactMatchGrader": "graders.exact_match",
    "GenerateSamplesCallback": "callbacks.generate_samples",
    "Grade": "graders.base",
    "GraderEvalCallback": "callbacks.grader_eval",
    "IgnoreGradeException": "errors",
    "InferenceModel": "models.inference",
    "JSONSchemaGrader": "graders.json_schema",
    "ModelBuilder": "models.builder",
    "ModelCallback": "callbacks.model_callback",
    "NumericGrader": "graders.numeric",
    "RecipeCallback": "callbacks.base",
    "RegexGrader": "graders.regex_grader",
    "RemoteCalls": "graders.remote_calls",
    "RunView": "callbacks.base",
    "SFT": "trainers.sft",
    "StringThread": "threads.thread",
    "StringTurn": "threads.thread",
    "Table": "table",
    "TokenizedThread": "threads.tokenized",
    "Tool": "threads.tools",
    "ToolCall": "threads.tools",
    "TrainingModel": "models.training",
    "TrainingResult": "trainers.loop",
    "ValidationLossCallback": "callbacks.validation_loss",
    "at": "schedule",
    "callback": "callbacks.function_callback",
    "every": "schedule",
    "every_minutes": "schedule",
    "every_steps": "schedule",
    "find_contamination": "threads.contamination",
    "live_model": "models.live_model",
    "load_pairs": "threads.datasets",
    "load_threads": "threads.datasets",
    "train_validation_split": "threads.split",
}

__all__ = [
    "SFT",
    "BaseGrader",
    "BestModelCallback",
    "CallbackRunner",
    "CheckpointCallback",
    "CombinedGrader",
    "CombinedSchedule",
    "ContainsGrader",
    "CosineScheduler",
    "CosineSchedulerWithoutWarmup",
    "EarlyStoppingCallback",
    "ExactMatchGrader",
    "GenerateSamplesCallback",
    "Grade",
    "GraderEvalCallback",
    "IgnoreGradeException",
    "InferenceModel",
    "JSONSchemaGrader",
    "ModelBuilder",
    "ModelCallback",
    "NumericGrader",
    "RecipeCallback",
    "RegexGrader",
    "RemoteCalls",
    "RunView",
    "StringThread",
    "StringTurn",
    "Table",
    "TokenizedThread",
    "Tool",
    "ToolCall",
    "TrainingModel",
    "TrainingResult",
    "ValidationLossCallback",
    "at",
    "callback",
    "every",
    "every_minutes",
    "every_steps",
    "find_contamination",
    "live_model",
    "load_pairs",
    "load_threads",
    "train_validation_split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
