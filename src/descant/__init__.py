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
    from descant.callbacks.metric_watch import MetricWatch
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
    from descant.metrics import MetricSpec
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
    from descant.runlog.run_reader import RunReader
    from descant.runner.callback_runner import CallbackRunner
    from descant.runner.options import RunOptions
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

_NAMES = {
    "callbacks.base": ("RecipeCallback", "RunView"),
    "callbacks.best_model": ("BestModelCallback",),
    "callbacks.checkpoint": ("CheckpointCallback",),
    "callbacks.early_stopping": ("EarlyStoppingCallback",),
    "callbacks.function_callback": ("callback",),
    "callbacks.generate_samples": ("GenerateSamplesCallback",),
    "callbacks.grader_eval": ("GraderEvalCallback",),
    "callbacks.metric_watch": ("MetricWatch",),
    "callbacks.model_callback": ("ModelCallback",),
    "callbacks.validation_loss": ("ValidationLossCallback",),
    "data.contamination": ("find_contamination",),
    "data.datasets": ("load_pairs", "load_threads"),
    "data.split": ("train_validation_split",),
    "errors": ("IgnoreGradeException",),
    "graders.base": ("BaseGrader", "Grade"),
    "graders.combined_grader": ("CombinedGrader",),
    "graders.contains": ("ContainsGrader",),
    "graders.exact_match": ("ExactMatchGrader",),
    "graders.json_schema": ("JSONSchemaGrader",),
    "graders.numeric": ("NumericGrader",),
    "graders.regex_grader": ("RegexGrader",),
    "graders.remote_calls": ("RemoteCalls",),
    "metrics": ("MetricSpec",),
    "models.builder": ("ModelBuilder",),
    "models.inference": ("InferenceModel",),
    "models.live_model": ("live_model",),
    "models.training": ("TrainingModel",),
    "models.evaluation_placement": ("EvaluationPlacement",),
    "notifiers": ("JobNotifier", "SimpleProgressNotifier", "StageNotifier", "StdoutJobNotifier", "StdoutStageNotifier"),
    "recipes.config": ("InputConfig",),
    "recipes.context": ("RecipeContext",),
    "recipes.recipe": ("recipe_main",),
    "runner.callback_runner": ("CallbackRunner",),
    "runner.options": ("RunOptions",),
    "runlog.run_reader": ("RunReader",),
    "schedule": ("at", "every", "every_minutes", "every_steps"),
    "table": ("Table",),
    "threads.thread": ("StringThread", "StringTurn"),
    "threads.tokenized": ("TokenizedThread",),
    "threads.tools": ("Tool", "ToolCall"),
    "trackers.composite": ("CompositeLogger",),
    "trackers.configured": ("get_prod_logger",),
    "trackers.logger": ("Logger", "TrackerLogger"),
    "trackers.mlflow": ("MLFlowLogger",),
    "trackers.stdout": ("StdoutLogger",),
    "trackers.tensorboard": ("TBMetricsLogger",),
    "trackers.trackio": ("TrackioLogger",),
    "trackers.wandb": ("WandbLogger",),
    "trainers.loop": ("TrainingResult",),
    "trainers.lr_schedulers": ("CombinedSchedule", "CosineScheduler", "CosineSchedulerWithoutWarmup"),
    "trainers.sft": ("SFT",),
}
_HOME_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "SFT", "BaseGrader", "BestModelCallback", "CallbackRunner", "CheckpointCallback", "CombinedGrader",
    "CombinedSchedule", "CompositeLogger", "ContainsGrader", "CosineScheduler", "CosineSchedulerWithoutWarmup",
    "EarlyStoppingCallback", "EvaluationPlacement", "ExactMatchGrader", "GenerateSamplesCallback", "Grade",
    "GraderEvalCallback", "IgnoreGradeException", "InferenceModel", "InputConfig", "JSONSchemaGrader",
    "JobNotifier", "Logger", "MLFlowLogger", "MetricSpec", "MetricWatch", "ModelBuilder", "ModelCallback",
    "NumericGrader", "RecipeCallback", "RecipeContext", "RegexGrader", "RemoteCalls", "RunOptions", "RunReader",
    "RunView", "SimpleProgressNotifier", "StageNotifier", "StdoutJobNotifier", "StdoutLogger", "StdoutStageNotifier",
    "StringThread", "StringTurn", "TBMetricsLogger", "Table", "TokenizedThread", "Tool", "ToolCall",
    "TrackerLogger", "TrackioLogger", "TrainingModel", "TrainingResult", "ValidationLossCallback", "WandbLogger",
    "at", "callback", "every", "every_minutes", "every_steps", "find_contamination", "get_prod_logger",
    "live_model", "load_pairs", "load_threads", "recipe_main", "train_validation_split",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
