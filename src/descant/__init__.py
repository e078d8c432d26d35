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
    from descant.callbacks.validation_loss import ValidationLossCallback
    from descant.data.contamination import find_contamination
    from descant.data.datasets import load_pairs, load_threads
    from descant.data.split import train_validation_split
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
    from descant.models.evaluation_placement import EvaluationPlacement
    from descant.models.inference import InferenceModel
    from descant.models.live_model import live_model
    from descant.models.training import TrainingModel
    from descant.notifiers import (
        JobNotifier,
        SimpleProgressNotifier,
        StageNotifier,
        StdoutJobNotifier,
        StdoutStageNotifier,
    )
    from descant.recipes.config import InputConfig
    from descant.recipes.context import RecipeContext
    from descant.recipes.recipe import recipe_main
    from descant.runner.callback_runner import CallbackRunner
    from descant.schedule import at, every, every_minutes, every_steps
    from descant.table import Table
    from descant.threads.thread import StringThread, StringTurn
    from descant.threads.tokenized import TokenizedThread
    from descant.threads.tools import Tool, ToolCall
    from descant.trackers.composite import CompositeLogger
    from descant.trackers.configured import get_prod_logger
    from descant.trackers.logger import Logger, TrackerLogger
    from descant.trackers.mlflow import MLFlowLogger
    from descant.trackers.stdout import StdoutLogger
    from descant.trackers.tensorboard import TBMetricsLogger
    from descant.trackers.trackio import TrackioLogger
    from descant.trackers.wandb import WandbLogger
    from descant.trainers.loop import TrainingResult
    from descant.trainers.lr_schedulers import CombinedSchedule, CosineScheduler, CosineSchedulerWithoutWarmup
    from descant.trainers.sft import SFT

__version__ = "0.1.0"

_HOME_OF = {
    "BaseGrader": "graders.base",
    "BestModelCallback": "callbacks.best_model",
    "CallbackRunner": "runner.callback_runner",
    "CheckpointCallback": "callbacks.checkpoint",
    "CombinedGrader": "graders.combined_grader",
    "CombinedSchedule": "trainers.lr_schedulers",
    "CompositeLogger": "trackers.composite",
    "ContainsGrader": "graders.contains",
    "CosineScheduler": "trainers.lr_schedulers",
    "CosineSchedulerWithoutWarmup": "trainers.lr_schedulers",
    "EarlyStoppingCallback": "callbacks.early_stopping",
    "EvaluationPlacement": "models.evaluation_placement",
    "ExactMatchGrader": "graders.exact_match",
    "GenerateSamplesCallback": "callbacks.generate_samples",
    "Grade": "graders.base",
    "GraderEvalCallback": "callbacks.grader_eval",
    "IgnoreGradeException": "errors",
    "InferenceModel": "models.inference",
    "InputConfig": "recipes.config",
    "JSONSchemaGrader": "graders.json_schema",
    "JobNotifier": "notifiers",
    "Logger": "trackers.logger",
    "MLFlowLogger": "trackers.mlflow",
    "ModelBuilder": "models.builder",
    "ModelCallback": "callbacks.model_callback",
    "NumericGrader": "graders.numeric",
    "RecipeCallback": "callbacks.base",
    "RecipeContext": "recipes.context",
    "RegexGrader": "graders.regex_grader",
    "RemoteCalls": "graders.remote_calls",
    "RunView": "callbacks.base",
    "SFT": "trainers.sft",
    "SimpleProgressNotifier": "notifiers",
    "StageNotifier": "notifiers",
    "StdoutJobNotifier": "notifiers",
    "StdoutLogger": "trackers.stdout",
    "StdoutStageNotifier": "notifiers",
    "StringThread": "threads.thread",
    "StringTurn": "threads.thread",
    "TBMetricsLogger": "trackers.tensorboard",
    "Table": "table",
    "TokenizedThread": "threads.tokenized",
    "Tool": "threads.tools",
    "ToolCall": "threads.tools",
    "TrackerLogger": "trackers.logger",
    "TrackioLogger": "trackers.trackio",
    "TrainingModel": "models.training",
    "TrainingResult": "trainers.loop",
    "ValidationLossCallback": "callbacks.validation_loss",
    "WandbLogger": "trackers.wandb",
    "at": "schedule",
    "callback": "callbacks.function_callback",
    "every": "schedule",
    "every_minutes": "schedule",
    "every_steps": "schedule",
    "find_contamination": "data.contamination",
    "get_prod_logger": "trackers.configured",
    "live_model": "models.live_model",
    "load_pairs": "data.datasets",
    "load_threads": "data.datasets",
    "recipe_main": "recipes.recipe",
    "train_validation_split": "data.split",
}

__all__ = [
    "SFT",
    "BaseGrader",
    "BestModelCallback",
    "CallbackRunner",
    "CheckpointCallback",
    "CombinedGrader",
    "CombinedSchedule",
    "CompositeLogger",
    "ContainsGrader",
    "CosineScheduler",
    "CosineSchedulerWithoutWarmup",
    "EarlyStoppingCallback",
    "EvaluationPlacement",
    "ExactMatchGrader",
    "GenerateSamplesCallback",
    "Grade",
    "GraderEvalCallback",
    "IgnoreGradeException",
    "InferenceModel",
    "InputConfig",
    "JSONSchemaGrader",
    "JobNotifier",
    "Logger",
    "MLFlowLogger",
    "ModelBuilder",
    "ModelCallback",
    "NumericGrader",
    "RecipeCallback",
    "RecipeContext",
    "RegexGrader",
    "RemoteCalls",
    "RunView",
    "SimpleProgressNotifier",
    "StageNotifier",
    "StdoutJobNotifier",
    "StdoutLogger",
    "StdoutStageNotifier",
    "StringThread",
    "StringTurn",
    "TBMetricsLogger",
    "Table",
    "TokenizedThread",
    "Tool",
    "ToolCall",
    "TrackerLogger",
    "TrackioLogger",
    "TrainingModel",
    "TrainingResult",
    "ValidationLossCallback",
    "WandbLogger",
    "at",
    "callback",
    "every",
    "every_minutes",
    "every_steps",
    "find_contamination",
    "get_prod_logger",
    "live_model",
    "load_pairs",
    "load_threads",
    "recipe_main",
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
