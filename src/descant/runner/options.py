"""RunOptions: the options of every run, each declared once."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, dataclass_transform, get_args

from descant.arguments import (
    argument_names,
    as_path,
    check_flag,
    check_one_of,
    check_whole_number,
    is_finite_number,
    refuse_unknown,
)
from descant.callbacks.base import RecipeCallback, RunMode
from descant.errors import ConfigurationError
from descant.models.evaluation_placement import EvaluationPlacement
from descant.runner.contamination_check import Policy
from descant.runner.recorder import Loggers, flat_loggers
from descant.settings import plain

KindT = TypeVar("KindT")
TrackerDetail = Literal["main", "all"]


def checked_by(check: Callable[..., object], **limits: Any) -> dict[str, Any]:
    """Metadata of a field whose value is given to ``check(name, value, **limits)``."""
    return {"check": partial(check, **limits)}


def _check_progress_bar(name: str, value: Any) -> None:
    if value is not None:
        check_flag(name, value)


def _check_budget(name: str, value: Any) -> None:
    if value is not None and not (is_finite_number(value) and 0 < value < 1):
        raise ConfigurationError(
            f"{name}={value!r} must be the share of the time that callbacks may cost, above 0 and below 1 (0.05 is "
            "5 %), or None for no limit"
        )


def _check_kind(name: str, value: Any, *, kind: Any) -> None:
    if value is not None and not isinstance(value, kind):
        needed = getattr(kind, "__name__", kind)
        raise ConfigurationError(f"{name}={value!r} is a {type(value).__name__}; {needed} is needed, or None")


class _Documented:
    """The docstring of a class with those of its fields behind it, read from the source when somebody asks."""

    def __init__(self, text: str) -> None:
        self._text = inspect.cleandoc(text)

    def __get__(self, instance: object, owner: type) -> str:
        documented = {name: text for base in reversed(owner.__mro__) for name, text in _field_docs(base)}
        declared = [name for base in owner.__mro__ for name in vars(base).get("__annotations__", ())]
        names = [name for name in dict.fromkeys(declared) if name in documented]  # its own before those of its bases
        lines = [f"    {name}: " + documented[name].replace("\n", "\n        ") for name in names]
        return "\n".join([self._text, "", "Args:", *lines] if lines else [self._text])


def _field_docs(kind: type) -> Iterator[tuple[str, str]]:
    if "__dataclass_fields__" not in vars(kind):
        return
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, SyntaxError):  # there is no source: a frozen build, a console
        return
    for declared, text in pairwise(tree.body):  # type: ignore[attr-defined]
        match declared, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                yield name, inspect.cleandoc(doc)


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(field,))
def options(kind: type[KindT]) -> type[KindT]:
    """Decorator: a keyword-only dataclass of options. ``help`` shows its fields as arguments, with the docstring that
    stands behind each."""
    made = dataclass(kw_only=True, eq=False, repr=False)(kind)
    made.__doc__ = _Documented(made.__doc__ or "")  # type: ignore[assignment]
    made.__init__ = _taking_positions(made.__init__)  # type: ignore[method-assign]
    return made


def _taking_positions(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes the arguments that its class names in ``positional`` by position, too."""

    @wraps(init)
    def by_position_too(self: RunOptions, *given: Any, **arguments: Any) -> None:
        names, kind = self.positional, type(self).__name__
        if len(given) > len(names):
            raise ConfigurationError(
                f"{kind} takes {', '.join(names) or 'nothing'} by position, in this order; give the others by keyword"
            )
        placed = dict(zip(names, given, strict=False))
        if twice := [name for name in placed if name in arguments]:
            raise ConfigurationError(f"{kind}: {twice[0]} is given by position and by keyword")
        optional = [each.name for each in fields(self) if each.default is not MISSING or not each.init]
        if missing := [each.name for each in fields(self) if each.name not in {*optional, *placed, *arguments}]:
            raise ConfigurationError(f"{kind} needs {' and '.join(f'{name}=' for name in missing)}")
        init(self, **placed, **arguments)

    return by_position_too


@options
class RunOptions:
    """What every run takes by keyword: trainers, ``CallbackRunner`` and ``add_callbacks``.

    A field is the argument, its check, its documentation and its line in the settings that the run log keeps.

    Raises:
        ConfigurationError: an argument that cannot work, or that does not exist, with the one that was meant.
    """

    positional: ClassVar[Sequence[str]] = ()
    """The arguments that may be given by position, in this order."""

    callbacks: Sequence[RecipeCallback] = ()
    """Run at their exact steps, in list order; names and declared metrics must be distinct."""

    logger: Loggers | None = field(default=None, metadata=checked_by(flat_loggers))
    """A tracker (``WandbLogger``, ``get_prod_logger()``, ...), fed from the run log in parallel to training; or any
    callable that takes a dict, called once per step; or a list of them. The run log is always written."""

    run_dir: str | Path | None = field(default=None, metadata=checked_by(_check_kind, kind=str | Path))
    """The directory of the run, made if needed; by default a new one under ``runs``."""

    seed: int = field(default=0, metadata=checked_by(check_whole_number, least=0))
    """Everything random is made from it: dropout, and what callbacks sample. (The order of the data has its own.)"""

    strict: bool = field(default=False, metadata=checked_by(check_flag))
    """Stop at the first callback or logger that fails, with a ``CallbackError``, instead of recording it."""

    contamination: Policy = field(default="warn", metadata=checked_by(check_one_of, allowed=get_args(Policy)))
    """What follows when prompts that callbacks evaluate on are trained on, too: "warn" says so at the start, with
    examples; "error" refuses to start; "ignore" does not look."""

    callback_mode: RunMode = field(default="inline", metadata=checked_by(check_one_of, allowed=get_args(RunMode)))
    """The mode of every callback that looks at a model and has none of its own, see ``ModelCallback``; or "auto", see
    ``Trainer``."""

    callback_budget: float | None = field(default=None, metadata=checked_by(_check_budget))
    """The share of the time that callbacks may cost training, such as 0.05; by default there is no limit. A call that
    would exceed it is deferred to the first step at which it fits, and that is recorded. First and last calls are
    always made."""

    callback_placement: EvaluationPlacement | None = field(
        default=None, metadata=checked_by(_check_kind, kind=EvaluationPlacement)
    )
    """Where the mode "background" evaluates; by default in a process of its own."""

    tracker_detail: TrackerDetail = field(
        default="main", metadata=checked_by(check_one_of, allowed=get_args(TrackerDetail))
    )
    """What trackers are sent: "main" leaves out metrics declared as details (``MetricSpec.detail``: counts,
    constants, spreads) and what callbacks cost, which is one table at the end; "all" is everything. The run log and
    loggers that are plain functions always have everything."""

    progress_bar: bool | None = field(default=None, metadata=checked_by(_check_progress_bar))
    """Show the progress: in a live line on a terminal and in a notebook, in about twenty lines without. By default
    descant's trainers do, loops of yours from their first step on unless they draw a bar of tqdm, and trainers of
    others do not, which have a bar. Evaluations, warnings and the outcome are shown in any case."""

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        """Refuse arguments that do not exist, in words that help."""
        shared = [each.name for each in fields(RunOptions)]
        own = [name for name in argument_names(cls) if name not in shared]
        refuse_unknown(cls.__name__, arguments, own + shared)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for each in fields(self):
            if check := each.metadata.get("check"):
                check(each.name, getattr(self, each.name))
        if self.run_dir is not None:  # a callback may change the working directory
            self.run_dir = Path(as_path(self.run_dir)).absolute()

    def run_options(self) -> dict[str, Any]:
        """The options of every run, as keyword arguments of another one."""
        return {each.name: getattr(self, each.name) for each in fields(RunOptions)}

    def settings(self) -> dict[str, Any]:
        """The arguments as the run log keeps them: plain values as they are, others as they describe themselves."""
        left_out = ("callbacks", "logger", "run_dir", "progress_bar")  # which the run log has under names of its own
        return {each.name: plain(getattr(self, each.name)) for each in fields(self) if each.name not in left_out}
