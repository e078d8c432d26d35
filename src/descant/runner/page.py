"""Page: standard output, for what people ask to see."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

_LEAST_WIDTH = 40


class Page(Console):
    """Standard output; the command ends without an error when it is closed (``| head``)."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without block characters shows codes
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True)  # file.jsonl:100: is a place
        self.width = max(self.width, _LEAST_WIDTH)

    def on_broken_pipe(self) -> None:
        """Discard the rest, and exit."""
        silence_output()
        raise SystemExit(0)

    def section(self, title: str, lines: Iterable[Text]) -> None:
        """A title with lines below it, if there are any."""
        for number, line in enumerate(lines):
            if number == 0 and title:
                self.print(Text(f"\n{title}", style="bold underline"))
            self.print(line)


def silence_output() -> None:
    """Discard the rest of standard output, which takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
