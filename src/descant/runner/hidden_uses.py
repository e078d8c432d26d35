"""Hidden uses: what the code of callbacks and graders uses of a run, found without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from descant.callbacks.base import RecipeCallback
from descant.callbacks.function_callback import FunctionCallback
from descant.callbacks.model_callback import ModelCallback
from descant.engine.jobs import LIVE
from descant.models.inference import InferenceModel

_NUM_LOOKED_AT = 2000  # objects, in the search for a handle on a model
_NUM_ITEMS = 100  # of a list that is looked into: longer ones are data


def attributes_used(callback: RecipeCallback, method: str | None = None) -> set[str]:
    """The names of attributes and globals in the code of a callback's class (or one method of it) that is not
    descant's own. Functions that it calls are not looked at."""
    functions = [callback._function] if isinstance(callback, FunctionCallback) else _methods(callback)
    chosen = (each for each in functions if method in (None, getattr(each, "__name__", None)))
    return {name for each in chosen if isinstance(each, FunctionType) for name in _names(each.__code__)}


def second_half_uses_model(callback: ModelCallback[Any]) -> bool:
    """Whether ``report`` of a callback, or a grader or function that it has, may use the weights that are trained."""
    if "model" in attributes_used(callback, "report"):
        return True
    left: list[Any] = [each for each in vars(callback).values() if not isinstance(each, InferenceModel)]
    seen: set[int] = set()
    while left and len(seen) < _NUM_LOOKED_AT:
        each = left.pop()
        if isinstance(each, InferenceModel) and each._worker is callback.model._worker and each.weights == LIVE:
            return True
        if id(each) not in seen:
            seen.add(id(each))
            left += _parts(each)
    return False


def _parts(value: Any) -> Iterable[Any]:
    """What an object can reach: what its code names, bound arguments, its attributes. Data and models are left out."""
    parts: Iterable[Any] = ()
    match value:
        case type() | ModuleType() | InferenceModel():
            pass
        case FunctionType():
            named = (value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__)
            parts = (*named, *_closed_over(value), *(value.__defaults__ or ()))
        case MethodType():
            parts = (value.__func__, value.__self__)
        case partial():
            parts = (value.func, *value.args, *value.keywords.values())
        case list() | tuple() | dict():
            parts = (value.values() if isinstance(value, dict) else value) if len(value) < _NUM_ITEMS else ()
        case _ if hasattr(value, "__dict__"):
            parts = (*_methods(value), *vars(value).values())
    return parts


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents


def _methods(value: Any) -> Iterator[Any]:
    """The functions in the classes of an object that are not descant's own."""
    for kind in type(value).__mro__[:-1]:
        if not kind.__module__.startswith("descant."):
            yield from (each for each in vars(kind).values() if isinstance(each, FunctionType))


def _names(code: CodeType) -> set[str]:
    return {*code.co_names, *(name for each in code.co_consts if isinstance(each, CodeType) for name in _names(each))}
