"""EndTokens: the tokens that end a turn, as a chat template writes them."""

from __future__ import annotations

from dataclasses import dataclass

from descant.errors import RenderError
from descant.models.template import SENTINEL, Template
from descant.threads.thread import StringThread
from descant.threads.tools import ToolCall


@dataclass(frozen=True, slots=True)
class EndTokens:
    """The tokens that end a turn. Any token that was added to the vocabulary can be one, special or not.

    Attributes:
        end_of_turn_id: what the template writes after an assistant's content; None if it writes no such token.
        stop_ids: end generation.
        end_ids: end a turn wherever it stands: some templates end turns before others in their own way.
        turn_texts, call_texts: what ends turns, and turns that call tools, as text.
    """

    end_of_turn_id: int | None
    stop_ids: frozenset[int]
    end_ids: frozenset[int]
    turn_texts: tuple[str, ...]
    call_texts: tuple[str, ...]

    @classmethod
    def of(cls, template: Template) -> EndTokens:
        """What ends the turns of a few threads."""
        tokenizer, asked = template.tokenizer, StringThread().user("a")
        answered = asked.assistant(SENTINEL.format(0))
        end_of_turn_id = _after_content(template, answered)
        called = asked.assistant("", [ToolCall("f", {"x": SENTINEL.format(0)})])
        end_of_call_id = _after_call(template, called)
        if end_of_call_id is None:  # only the header of its result ends it, so the model has to write that to stop
            end_of_call_id = next(iter(_added(template, _text_after(template, called.tool("b")))), None)
        stop_ids = _known(end_of_turn_id, end_of_call_id, tokenizer.eos_token_id)
        before_others_id = _before_others(template, answered)
        # Some templates write no end: a turn lasts until the header of the next, which is looked for like an end
        before_users_id = _first_added(template, _text_after(template, answered.user("b")))

        def texts(*token_ids: int | None) -> tuple[str, ...]:
            return tuple(tokenizer.added_tokens_decoder[token_id].content for token_id in sorted(_known(*token_ids)))

        return cls(
            end_of_turn_id,
            stop_ids,
            stop_ids | _known(before_others_id),
            texts(end_of_turn_id, before_others_id, tokenizer.eos_token_id, before_users_id),
            texts(end_of_call_id),
        )


def _known(*token_ids: int | None) -> frozenset[int]:
    return frozenset(token_id for token_id in token_ids if token_id is not None)


def _text_after(template: Template, probe: StringThread) -> str:
    """What the template writes after the probe's sentinel."""
    try:
        _, found, tail = template.text(probe).rpartition(SENTINEL.format(0))
    except RenderError:
        return ""
    return tail if found else ""


def _after_content(template: Template, probe: StringThread) -> int | None:
    """The added token that follows on content."""
    return _first_added(template, _text_after(template, probe))


def _before_others(template: Template, answered: StringThread) -> int | None:
    """The added token that follows on content before another turn, and is not the beginning of that one's header."""
    tail = _text_after(template, answered.assistant("b"))
    header: str | None = None
    for thread in (answered.first_turns(1), answered):  # a header may say where it stands, or ends depend on it
        try:
            text, prompt = template.text(thread), template.prompt(thread, thread.chat_messages())
        except RenderError:
            continue
        if prompt.startswith(text) and prompt.removeprefix(text) in tail:
            header = prompt.removeprefix(text).strip()
    if header is None:
        return None
    end, found, _ = tail.partition(header or "b")
    return _first_added(template, end) if found else None


def _after_call(template: Template, probe: StringThread) -> int | None:
    """The last added token after a tool call, which may have tokens of its own before it."""
    decoder = template.tokenizer.added_tokens_decoder
    ends = _added(template, _text_after(template, probe))[::-1]
    return next((token_id for token_id in ends if decoder[token_id].special), ends[0] if ends else None)


def _added(template: Template, text: str) -> list[int]:
    """The tokens of a text that were added to the vocabulary."""
    return [token_id for token_id in _tokens(template, text) if token_id in template.tokenizer.added_tokens_decoder]


def _first_added(template: Template, text: str) -> int | None:
    """The first token of a text, white space aside, if it was added to the vocabulary."""
    shown = (i for i in _tokens(template, text) if str(template.tokenizer.decode([i])).strip())
    first = next(shown, None)
    return first if first in template.tokenizer.added_tokens_decoder else None


def _tokens(template: Template, text: str) -> list[int]:
    return list(template.tokenizer(text, add_special_tokens=False)["input_ids"])
