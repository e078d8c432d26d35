"""Template: a tokenizer's chat template, which makes text of messages."""

from __future__ import annotations

import json
import re
import warnings
from datetime import datetime
from typing import TYPE_CHECKING, Any

from descant.errors import ModelLoadError, RenderError
from descant.text import quoted
from descant.threads.thread import StringThread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters: no dataset contains them and no template treats them specially.
SENTINEL = "\ue000descant-turn-{}\ue001"
_MARKS = re.compile("\ue002descant\ue003")
_MACRO = "{% macro descant_written() %}\ue002descant\ue003{{ caller() }}\ue002descant\ue003{% endmacro %}\n"
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Template:
    """A tokenizer's chat template, which makes text of messages.

    ``{% generation %}`` tags are compiled as calls of a macro that leaves marks: Transformers follows them by a state
    of the compiled template, which all threads of a process share. Dates are those of the day on which the template
    was loaded, so that a thread has one render.

    Raises:
        ModelLoadError: the tokenizer has no chat template, or one that is no Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.chat_template:
            raise ModelLoadError(
                f"the tokenizer of {name!r} has no chat template, so threads cannot be rendered; set "
                "tokenizer.chat_template to a Jinja template and save the tokenizer beside the model"
            )
        self.tokenizer = tokenizer
        self.name = name
        self._said: set[str] = set()
        try:
            sources = tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])
        except ValueError as error:  # several, and none of them is the default
            raise ModelLoadError(f"{name!r}: {error}") from error
        self._source, self._source_with_tools = (_prepared(source, datetime.now()) for source in sources)
        self.has_generation_tags = _MACRO in self._source
        for source in (self._source, self._source_with_tools):
            self._check_syntax(source)
        self.opens_turns = True  # whether it follows add_generation_prompt
        question = StringThread().user("a")
        try:
            self.opens_turns = self.prompt(question, question.chat_messages()) != self.text(question)
        except RenderError:  # it refuses such a thread; then it is taken to be like others
            return

    def text(self, thread: StringThread, messages: list[dict[str, Any]] | None = None) -> str:
        """The text of a thread, or of other messages with its tools.

        Raises:
            RenderError: the template refuses them.
        """
        return _MARKS.sub("", self._apply(thread, thread.chat_messages() if messages is None else messages))

    def tagged_text(self, thread: StringThread) -> tuple[str, list[tuple[int, int]]]:
        """The text of a thread, and the characters ``[start, end)`` that the template tags as written by the model."""
        text, tagged = "", [(-1, -1)]
        for number, piece in enumerate(_MARKS.split(self._apply(thread, thread.chat_messages()))):
            start, text = len(text), text + piece
            if number % 2:  # what is tagged in several pieces is one
                tagged.append((tagged.pop()[0] if start == tagged[-1][1] else start, len(text)))
        return text, tagged[1:]

    def prompt(self, thread: StringThread, messages: list[dict[str, Any]]) -> str:
        """The text of messages up to where an assistant's answer to them begins.

        A template that has no generation prompt is asked what it would write before an answer. Spaces at the end of
        that are left to the model, whose tokens begin with them.
        """
        if self.opens_turns:
            return _MARKS.sub("", self._apply(thread, messages, add_generation_prompt=True))
        history = self.text(thread, messages)
        answer = SENTINEL.format("answer")
        try:
            text = self.text(thread, [*messages, {"role": "assistant", "content": answer}])
        except RenderError:  # no answer may follow here
            return history
        opened, answered, _ = text.partition(answer)
        if not answered:
            return history
        return history + opened[len(history) :].rstrip(" ") if opened.startswith(history) else opened

    def say_once(self, kind: str, message: str) -> None:
        """Warn of something that many threads may have in common, for the first of them."""
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"{self.name!r}: {message}", stacklevel=3)

    def check_tools_are_shown(self, thread: StringThread, text: str) -> None:
        """A template that knows no tools leaves them out in silence."""
        if missing := [tool.name for tool in thread.tools if tool.name not in text]:
            raise RenderError(
                f"the chat template of {self.name!r} does not show the tools of {place(thread)} to the model (first: "
                f"{missing[0]!r}); use a template that does, or take them off with with_tools()"
            )

    def leaves_out(self, thread: StringThread, turn: int) -> RenderError:
        """The error for a turn whose content is not in the text."""
        return RenderError(
            f"the chat template of {self.name!r} leaves out turn {turn} ({_turn_shown(thread, turn)}) of "
            f"{place(thread)}; take it out of the thread, put its content into a turn that the template shows, or "
            "change the template"
        )

    def changes(self, thread: StringThread, turn: int) -> RenderError:
        """The error for a turn whose content is not in the text as it was written."""
        return RenderError(
            f"the chat template of {self.name!r} changes turn {turn} ({_turn_shown(thread, turn)}) of "
            f"{place(thread)} when it renders it, so the turn's tokens cannot be located and trained exactly; "
            "write the content as the template does, or change the template"
        )

    def _apply(
        self, thread: StringThread, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        tools: list[Any] | None = [tool.as_schema() for tool in thread.tools] or None
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self._source_with_tools if tools else self._source,
                tokenize=False, add_generation_prompt=add_generation_prompt,
            )  # fmt: skip
        except _refusals() as error:
            roles = ", ".join(message["role"] for message in messages) or "no turns"
            raise RenderError(
                f"the chat template of {self.name!r} refuses {place(thread)} (turns: {roles}): {error}"
            ) from error
        return str(text)

    def _check_syntax(self, source: str) -> None:
        from jinja2 import TemplateSyntaxError  # noqa: PLC0415

        try:
            self.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=source, tokenize=False)
        except TemplateSyntaxError as error:
            line = error.lineno - source.count(_MACRO)
            raise ModelLoadError(
                f"the chat template of {self.name!r} is not valid Jinja: {error.message} (line {line} of the template)"
            ) from error
        except _refusals():  # of this thread; others may do
            return


def place(thread: StringThread) -> str:
    """What a thread is called in messages."""
    return thread.source or f"thread {thread.uuid()}"


def _turn_shown(thread: StringThread, turn: int) -> str:
    role, content = thread.get_turns()[turn]
    return f"{role}, {quoted(content, 40)}" if content else role


def _prepared(source: str, now: datetime) -> str:
    """A template with marks at its generation tags, and with dates."""
    tagged, num_tags = _GENERATION_TAG.subn(
        lambda tag: f"{{%{tag[1]} {'endcall' if tag[2] else 'call descant_written()'} {tag[3]}%}}", source
    )
    dated = _DATE.sub(lambda call: json.dumps(now.strftime(call[2])), tagged)
    return (_MACRO if num_tags else "") + dated


def _refusals() -> tuple[type[Exception], ...]:
    """What a template raises, in its own words or by what it does with a thread."""
    from jinja2 import TemplateError  # noqa: PLC0415  # Transformers has it by then; the runner imports neither

    return TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
