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
    from descant.graders.base import BaseGrader, Grade
    from descant.graders.exact_match import ExactMatchGrader
    from descant.models.builder import ModelBuilder
    from descant.models.inference import InferenceModel
    from descant.models.live_model import live_model
    from descant.models.training import TrainingModel
    from descant.schedule import at, every, every_minutes, every_steps
    from descant.table import Table
    from descant.threads.datasets import load_threads
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
    "CombinedSchedule": "trainers.lr_schedulers",
    "CosineScheduler": "trainers.lr_schedulers",
    "CosineSchedulerWithoutWarmup": "trainers.lr_schedulers",
    "EarlyStoppingCallback": "callbacks.early_stopping",
    "ExactMatchGrader": "graders.exact_match",
    "GenerateSamplesCallback": "callbacks.generate_samples",
    "Grade": "graders.base",
    "GraderEvalCallback": "callbacks.grader_eval",
    "InferenceModel": "models.inference",
    "ModelBuilder": "models.builder",
    "ModelCallback": "callbacks.model_callback",
    "RecipeCallback": "callbacks.base",
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
    "live_model": "models.live_model",
    "load_threads": "threads.datasets",
}

__all__ = [
    "SFT",
    "BaseGrader",
    "BestModelCallback",
    "CallbackRunner",
    "CheckpointCallback",
    "CombinedSchedule",
    "CosineScheduler",
    "CosineSchedulerWithoutWarmup",
    "EarlyStoppingCallback",
    "ExactMatchGrader",
    "GenerateSamplesCallback",
    "Grade",
    "GraderEvalCallback",
    "InferenceModel",
    "ModelBuilder",
    "ModelCallback",
    "RecipeCallback",
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
    "live_model",
    "load_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
