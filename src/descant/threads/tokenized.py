"""TokenizedThread: a conversation as the exact tokens of a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from descant.threads.thread import StringThread, assistant_turn_weights


class TokenizedTurn(NamedTuple):
    """One turn: its role and the tokens of its content, without the template's markup."""

    role: str
    content: list[int]


class TurnSpan(NamedTuple):
    """The tokens of a turn: ``[start, content_end)`` are content, ``[start, end)`` include its end-of-turn token."""

    role: str
    start: int
    content_end: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenizedThread:
    """A rendered conversation: all of its tokens, and the spans of the located turns.

    Assistant turns and weighted turns are located; other turns are part of the template's text.

    Attributes:
        thread: the same conversation as text; a generated turn as it was decoded.
        token_ids: all tokens, markup included. Training and scoring use these, never the text again.
        spans: the located turns, in order.
        turn_weights: one loss weight per located turn.
        finish_reason: for a generated last turn "stop" (end of turn), "stop_string", or "length" (cut off); else None.
        logprobs: for a generated last turn the log-probability of each of its tokens, in nats, at temperature 1.
    """

    thread: StringThread
    token_ids: tuple[int, ...]
    spans: tuple[TurnSpan, ...] = ()
    turn_weights: tuple[float, ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[float, ...] = field(default=(), compare=False)

    def get_turns(self) -> list[TokenizedTurn]:
        """The located turns."""
        return [TokenizedTurn(span.role, list(self.token_ids[span.start : span.content_end])) for span in self.spans]

    def get_turn_weights(self) -> list[float]:
        """One loss weight per located turn."""
        return list(self.turn_weights)

    def last_content(self) -> list[int] | None:
        """The content tokens of the last located turn, without its end-of-turn token; None without turns."""
        return self.get_turns()[-1].content if self.spans else None

    def len_last_turn(self) -> int:
        """How many content tokens the last located turn has; 0 without turns."""
        return self.spans[-1].content_end - self.spans[-1].start if self.spans else 0

    def token_weights(self) -> list[float]:
        """One loss weight per token: that of its turn and end-of-turn token; 0 outside of turns and at position 0.

        The first token of a sequence is never predicted, so it cannot be trained.
        """
        weights = [0.0] * len(self.token_ids)
        for span, weight in zip(self.spans, self.turn_weights, strict=True):
            weights[span.start : span.end] = [weight] * (span.end - span.start)
        if weights:
            weights[0] = 0.0
        return weights

    def with_weight_all_assistant_turns(self) -> TokenizedThread:
        """This thread with weight 1 on every assistant turn and 0 on all others."""
        return self.with_weight_assistant_turns_from_index(0)

    def with_weight_last_assistant_turn(self) -> TokenizedThread:
        """This thread with weight 1 on the last assistant turn and 0 on all others."""
        return self.with_weight_assistant_turns_from_index(-1)

    def with_weight_assistant_turns_from_index(self, index: int) -> TokenizedThread:
        """This thread with weight 1 on assistant turns number ``index`` and later, 0 on all others."""
        weights = assistant_turn_weights([span.role for span in self.spans], start=index)
        return replace(self, turn_weights=weights)
