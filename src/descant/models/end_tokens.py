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
        end_of_call_id = _after_call(template, asked.assistant("", [ToolCall("f", {"x": SENTINEL.format(0)})]))
        stop_ids = _known(end_of_turn_id, end_of_call_id, tokenizer.eos_token_id)
        before_user_id = _after_content(template, answered.user("b"))
        # What begins the next turn depends on whose turn that is, and is no end of this one.
        if before_user_id not in stop_ids and before_user_id != _after_content(template, answered.assistant("b")):
            before_user_id = None

        def texts(*token_ids: int | None) -> tuple[str, ...]:
            return tuple(tokenizer.added_tokens_decoder[token_id].content for token_id in sorted(_known(*token_ids)))

        return cls(
            end_of_turn_id,
            stop_ids,
            stop_ids | _known(before_user_id),
            texts(end_of_turn_id, before_user_id),
            texts(end_of_call_id),
        )


def _known(*token_ids: int | None) -> frozenset[int]:
    return frozenset(token_id for token_id in token_ids if token_id is not None)


def _tokens_after(template: Template, probe: StringThread) -> list[int]:
    """The tokens that the template writes after the probe's sentinel."""
    try:
        _, found, tail = template.text(probe).rpartition(SENTINEL.format(0))
    except RenderError:
        return []
    return list(template.tokenizer(tail, add_special_tokens=False)["input_ids"]) if found else []


def _after_content(template: Template, probe: StringThread) -> int | None:
    """The added token that follows on content, white space between them aside."""
    token_ids, added = _tokens_after(template, probe), template.tokenizer.added_tokens_decoder
    first = next((token_id for token_id in token_ids if str(template.tokenizer.decode([token_id])).strip()), None)
    return first if first in added else None


def _after_call(template: Template, probe: StringThread) -> int | None:
    """The last added token after a tool call, which may have tokens of its own before it."""
    token_ids, added = _tokens_after(template, probe), template.tokenizer.added_tokens_decoder
    ends = [token_id for token_id in reversed(token_ids) if token_id in added]
    return next((token_id for token_id in ends if added[token_id].special), ends[0] if ends else None)
