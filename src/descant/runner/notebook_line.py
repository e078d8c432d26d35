"""NotebookLine: a line of text in a notebook that changes, as one output of its cell."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

_REFRESH_S = 0.5
_FORMAT = '<pre style="white-space:pre-wrap;margin:0;font-family:monospace">{code}</pre>'


class NotebookLine:
    """Shows what a function returns, again and again, until it is stopped.

    rich's own live display makes a widget, of which nothing is left in a notebook that was saved and opened again.
    """

    def __init__(self, line: Callable[[], Text]) -> None:
        self._line = line
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="descant-notebook-line", daemon=True)
        self._output: Any = None

    def start(self) -> None:
        """Show it."""
        from IPython.display import display  # noqa: PLC0415  # there is one in a notebook

        self._output = display(self._content(), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._thread.start()

    def stop(self) -> None:
        """Show it a last time; twice is harmless."""
        if self._output is not None and not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            self._output.update(self._content(), raw=True)

    def _refresh(self) -> None:
        while not self._stopped.wait(_REFRESH_S):
            self._output.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        line = self._line()
        page = RichConsole(file=io.StringIO(), record=True, width=len(line) + 1, force_jupyter=False)
        page.print(line)
        return {"text/plain": line.plain, "text/html": page.export_html(inline_styles=True, code_format=_FORMAT)}
