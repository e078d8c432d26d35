"""Renderer: threads to tokens through the model's own chat template, and generated tokens back to text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from descant.errors import ModelLoadError, RenderError
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread, TurnSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters: no dataset contains them and no template treats them specially.
_SENTINEL = "\ue000descant-turn-{}\ue001"
_END_OF_REASONING = "</think>"


class _CharSpan(NamedTuple):
    """A located turn in the rendered text: ``[start, end)`` is what the model writes as the turn's content."""

    turn: int
    start: int
    end: int


class Renderer:
    """Renders threads with a tokenizer's chat template and knows where each located turn stands.

    Turns are located in the render of the *whole* thread, because templates may treat a turn differently when
    others follow it: the thread is rendered a second time with sentinels in place of the located contents, and
    the two renders must agree everywhere else.

    Raises:
        ModelLoadError: the tokenizer has no chat template, or is not a fast one (offsets are needed).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.chat_template:
            raise ModelLoadError(
                f"the tokenizer of {name!r} has no chat template, so threads cannot be rendered; set "
                "tokenizer.chat_template to a Jinja template and save the tokenizer beside the model"
            )
        if not tokenizer.is_fast:
            raise ModelLoadError(f"the tokenizer of {name!r} is not a fast tokenizer; character offsets are needed")
        self.tokenizer = tokenizer
        self.name = name
        self.end_of_turn_id = self._find_end_of_turn()
        ids = (self.end_of_turn_id, tokenizer.eos_token_id)
        self.stop_ids = frozenset(token_id for token_id in ids if token_id is not None)

    def render(self, thread: StringThread) -> TokenizedThread:
        """All tokens of a thread, with its assistant turns and its weighted turns located.

        Raises:
            RenderError: the template refuses the thread, or changes a turn so that it cannot be located.
        """
        text = self._apply_template(thread, _messages(thread))
        located = self._locate(thread, text)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token_ids = tuple(encoding["input_ids"])
        starts, ends = zip(*encoding["offset_mapping"], strict=True) if token_ids else ((), ())
        turns, weights = thread.get_turns(), thread.get_turn_weights()
        spans = []
        for turn, start, end in located:
            # A token that reaches into the turn from before it belongs to it: the model has to write its text.
            first, content_end = bisect_right(ends, start), bisect_left(starts, end)
            spans.append(TurnSpan(turns[turn].role, first, content_end, self._end_of_turn(token_ids, content_end)))
        return TokenizedThread(thread, token_ids, tuple(spans), tuple(weights[turn] for turn, _, _ in located))

    def render_prompt(self, thread: StringThread) -> TokenizedThread:
        """All tokens of a thread, followed by the template's opening of an assistant turn.

        Raises:
            RenderError: the template refuses the thread.
        """
        text = self._apply_template(thread, _messages(thread), add_generation_prompt=True)
        return TokenizedThread(thread, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def append_generated(
        self,
        prompt: TokenizedThread,
        generated: Sequence[int],
        finish_reason: str,
        *,
        logprobs: Sequence[float] = (),
        stop_strings: Sequence[str] = (),
    ) -> TokenizedThread:
        """A prompt and the assistant turn of weight 1 that was generated for it, token for token.

        Its text ends before the end-of-turn token or the stop string that ended it.
        """
        start, end = len(prompt.token_ids), len(prompt.token_ids) + len(generated)
        content_end = end - (finish_reason == "stop")
        content = str(
            self.tokenizer.decode(
                list(generated[: content_end - start]), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        if finish_reason == "stop_string":  # the same text in which the engine found it
            content = content[: min(content.find(string) for string in stop_strings if string in content)]
        return TokenizedThread(
            thread=prompt.thread.assistant(content),
            token_ids=(*prompt.token_ids, *generated),
            spans=(*prompt.spans, TurnSpan("assistant", start, content_end, end)),
            turn_weights=(*prompt.turn_weights, 1.0),
            finish_reason=finish_reason,
            logprobs=tuple(logprobs),
        )

    def _locate(self, thread: StringThread, text: str) -> list[_CharSpan]:
        """Where each located turn stands in ``text``, verified character by character against the sentinels."""
        messages, weights = _messages(thread), thread.get_turn_weights()
        located = [i for i, message in enumerate(messages) if message["role"] == "assistant" or weights[i] > 0]
        masked_messages = [
            {**message, "content": _SENTINEL.format(i)} if i in located else message
            for i, message in enumerate(messages)
        ]
        rest = self._apply_template(thread, masked_messages)
        pieces = []  # the template's own text before, between and after the located contents
        for turn in located:
            piece, found, rest = rest.partition(_SENTINEL.format(turn))
            if not found:
                raise self._cannot_locate(thread, turn)
            pieces.append(piece)
        pieces.append(rest)

        spans = []
        position = len(pieces[0])
        for turn, piece in zip(located, pieces[1:], strict=True):
            content = messages[turn]["content"]
            for rendered in (content, content.strip(), content.lstrip(), content.rstrip()):  # templates may trim
                if text.startswith(rendered + piece, position):
                    break
            else:
                return self._locate_by_prompts(thread, text, located)
            start = self._end_of_generation_prompt(thread, turn, text[:position])
            spans.append(_CharSpan(turn, start, position + len(rendered)))
            position += len(rendered) + len(piece)
        if not text.startswith(pieces[0]) or position != len(text):
            raise self._cannot_locate(thread, located[0])
        return spans

    def _locate_by_prompts(self, thread: StringThread, text: str, located: Sequence[int]) -> list[_CharSpan]:
        """Where the located turns stand when the template takes contents apart, as reasoning templates do.

        An assistant turn then begins where the generation prompt of the thread before it ends, and goes on to the
        next end-of-turn token. What follows the reasoning must stand there as it was written.
        """
        turns = thread.get_turns()
        end_of_turn = None if self.end_of_turn_id is None else str(self.tokenizer.decode([self.end_of_turn_id]))
        spans = []
        for turn in located:
            role, content = turns[turn]
            start = self._end_of_generation_prompt(thread, turn, text)
            end = text.find(end_of_turn, start) if end_of_turn else -1
            answer = content.rpartition(_END_OF_REASONING)[2].strip()
            if role != "assistant" or end < start or answer not in text[start:end]:
                raise self._cannot_locate(thread, turn)
            spans.append(_CharSpan(turn, start, end))
        return spans

    def _end_of_generation_prompt(self, thread: StringThread, turn: int, before: str) -> int:
        """Where the model starts to write an assistant turn: templates may put text of its own (an empty
        reasoning block, say) between the generation prompt and the content, and the model has to write that."""
        turns = thread.get_turns()
        if turns[turn].role != "assistant" or turn == 0:
            return len(before)
        try:
            prompt = self._apply_template(thread, _messages(thread)[:turn], add_generation_prompt=True)
        except RenderError:  # some templates refuse a thread cut here; then the content is all that is known
            return len(before)
        return len(prompt) if before.startswith(prompt) else len(before)

    def _end_of_turn(self, token_ids: Sequence[int], content_end: int) -> int:
        """The position after the end-of-turn token that follows the content, white space between them included."""
        for position in range(content_end, len(token_ids)):
            if token_ids[position] in self.stop_ids:
                return position + 1
            if not self._is_white_space(token_ids[position]):
                break
        return content_end

    def _find_end_of_turn(self) -> int | None:
        """The special token that the template writes after an assistant's content, if it writes one."""
        probe = StringThread().user("a").assistant(_SENTINEL.format(0))
        text = self._apply_template(probe, _messages(probe))
        tail = text.partition(_SENTINEL.format(0))[2]
        special = {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for token_id in self.tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token_id in special:
                return int(token_id)
            if not self._is_white_space(token_id):
                break
        return None

    def _is_white_space(self, token_id: int) -> bool:
        return not str(self.tokenizer.decode([token_id])).strip()

    def _apply_template(
        self, thread: StringThread, messages: list[dict[str, str]], add_generation_prompt: bool = False
    ) -> str:
        try:
            rendered: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
            roles = ", ".join(message["role"] for message in messages) or "no turns"
            raise RenderError(
                f"the chat template of {self.name!r} refuses {_place(thread)} (turns: {roles}): {error}"
            ) from error
        return str(rendered)

    def _cannot_locate(self, thread: StringThread, turn: int) -> RenderError:
        return RenderError(
            f"the chat template of {self.name!r} changes turn {turn} ({thread.get_turns()[turn].role}) of "
            f"{_place(thread)} when it renders it, so the turn's tokens cannot be located and trained exactly; "
            "write the content as the template does, or change the template"
        )


def _messages(thread: StringThread) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in thread.get_turns()]


def _place(thread: StringThread) -> str:
    return thread.source or f"thread {thread.uuid()}"
