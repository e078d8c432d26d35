"""The scope of ``descant preview``, in which what would train says what it would do, and ends the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import NoReturn

from descant.schedule import Plan
from descant.text import printable

num_previewed: ContextVar[int | None] = ContextVar("descant_preview", default=None)
"""How many threads a preview shows; None where recipes are run and not previewed."""


class PreviewEnd(BaseException):
    """Raised through the recipe in place of training; ``is_refused`` says whether training would be refused."""

    def __init__(self, is_refused: bool = False) -> None:
        super().__init__("the preview ends here")
        self.is_refused = is_refused


def end_with_plan(title: str, num_steps: int, plan: Sequence[Plan]) -> NoReturn:
    """The preview of a loop whose data are not known: prints what would be called, and ends the recipe."""
    from descant.runner.console import plan_table  # noqa: PLC0415  # rich, which importing a trainer spares
    from descant.runner.page import Page  # noqa: PLC0415

    page = Page()
    page.print(printable(title), style="bold")
    page.print(f"{num_steps:,} step{'s' * (num_steps != 1)}", style="bold")
    page.print(plan_table(plan))
    raise PreviewEnd
