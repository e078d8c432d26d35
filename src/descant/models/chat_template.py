"""Renderer: threads to tokens through the model's own chat template, and generated tokens back to text."""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from descant.engine.jobs import GeneratedTokens
from descant.errors import ModelLoadError, RenderError
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread, TurnSpan
from descant.threads.tools import ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters: no dataset contains them and no template treats them specially.
_SENTINEL = "\ue000descant-turn-{}\ue001"
_END_OF_REASONING = "</think>"
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


_CharSpan = tuple[int, int, int]
"""A turn, and the characters ``[start, end)`` of the rendered text that the model writes as its content."""


class Renderer:
    """Renders threads with a tokenizer's chat template and knows where each located turn stands.

    Turns are located in the render of the *whole* thread, because templates may treat a turn differently when
    others follow it. Where the template tags what the assistant writes (``{% generation %}``), the tags say it. Else
    the thread is rendered a second time with sentinels in place of the located contents, and the two renders must
    agree everywhere else; turns that a template takes apart stand between generation prompt and end of turn.

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
        self.has_generation_tags = bool(_GENERATION_TAG.search(str(tokenizer.chat_template)))
        self._find_ends_of_turns()

    def _find_ends_of_turns(self) -> None:
        """Which special tokens end an assistant turn: the last one, one with tool calls, and one before others."""
        user, content = StringThread().user("a"), _SENTINEL.format(0)
        self.end_of_turn_id = self._find_end_of_turn(user.assistant(content))
        end_of_call_id = self._find_end_of_turn(user.assistant("", [ToolCall("f", {"x": content})]))
        end_before_others_id = self._find_end_of_turn(user.assistant(content).user("b"))

        def known(*token_ids: int | None) -> frozenset[int]:
            return frozenset(token_id for token_id in token_ids if token_id is not None)

        self.stop_ids = known(self.end_of_turn_id, end_of_call_id, self.tokenizer.eos_token_id)
        """Tokens that end generation."""
        self.end_ids = self.stop_ids | known(end_before_others_id)
        """Tokens that end a turn wherever it stands: some templates end turns before others in their own way."""
        ends_of_turns = known(self.end_of_turn_id, end_before_others_id)
        self.end_of_turn_texts, self.end_of_call_texts = (
            [self._decode([token_id]) for token_id in token_ids] for token_ids in (ends_of_turns, known(end_of_call_id))
        )

    def render(self, thread: StringThread) -> TokenizedThread:
        """All tokens of a thread, with its assistant turns and its weighted turns located.

        Raises:
            RenderError: the template refuses the thread, or changes a turn so that it cannot be located.
        """
        text = self._apply_template(thread, thread.chat_messages())
        self._check_tools_are_shown(thread, text)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token_ids = tuple(encoding["input_ids"])
        located = self._locate_by_tags(thread, token_ids)
        if located is None:
            starts, ends = zip(*encoding["offset_mapping"], strict=True) if token_ids else ((), ())
            located = []
            for turn, start, end in self._locate(thread, text):
                # A token that reaches into the turn from before it belongs to it: the model has to write its text.
                first, content_end = bisect_right(ends, start), bisect_left(starts, end)
                end_of_turn = self._end_of_turn(token_ids, content_end)
                located.append((turn, TurnSpan(thread.get_turns()[turn].role, first, content_end, end_of_turn)))
        weights = thread.get_turn_weights()
        return TokenizedThread(
            thread, token_ids, tuple(span for _, span in located), tuple(weights[turn] for turn, _ in located)
        )

    def render_prompt(self, thread: StringThread) -> TokenizedThread:
        """All tokens of a thread, followed by the template's opening of an assistant turn.

        Raises:
            RenderError: the template refuses the thread.
        """
        text = self._apply_template(thread, thread.chat_messages(), add_generation_prompt=True)
        self._check_tools_are_shown(thread, text)
        return TokenizedThread(thread, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def append_generated(
        self, prompt: TokenizedThread, generated: GeneratedTokens, stop_strings: Sequence[str] = ()
    ) -> TokenizedThread:
        """A prompt and the assistant turn of weight 1 that was generated for it, token for token.

        Its text ends before the end-of-turn token or the stop string that ended it.
        """
        start, end = len(prompt.token_ids), len(prompt.token_ids) + len(generated.token_ids)
        content_end = end - (generated.finish_reason == "stop")
        content = self._decode(generated.token_ids[: content_end - start])
        if generated.finish_reason == "stop_string":  # the same text in which the engine found it
            content = content[: min(content.find(string) for string in stop_strings if string in content)]
        return TokenizedThread(
            thread=prompt.thread.assistant(content),
            token_ids=(*prompt.token_ids, *generated.token_ids),
            spans=(*prompt.spans, TurnSpan("assistant", start, content_end, end)),
            turn_weights=(*prompt.turn_weights, 1.0),
            finish_reason=generated.finish_reason,
            logprobs=generated.logprobs,
        )

    def _locate_by_tags(self, thread: StringThread, token_ids: tuple[int, ...]) -> list[tuple[int, TurnSpan]] | None:
        """Where the assistant turns stand by the template's own ``{% generation %}`` tags, if it has one run of tokens
        for each of them, and nothing else is to be located."""
        turns, weights = thread.get_turns(), thread.get_turn_weights()
        assistants = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        if not self.has_generation_tags or any(weight > 0 for i, weight in enumerate(weights) if i not in assistants):
            return None
        rendered = self._apply_template(
            thread, thread.chat_messages(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = pairwise([0, *rendered["assistant_masks"], 0])
        edges = [position for position, (before, after) in enumerate(mask) if before != after]
        runs = list(zip(edges[::2], edges[1::2], strict=True))
        if len(runs) != len(assistants) or tuple(rendered["input_ids"]) != token_ids:
            return None
        spans = []
        for turn, (start, end) in zip(assistants, runs, strict=True):
            if not self._is_whole(thread, turn, self._decode(token_ids[start:end])):
                raise self._cannot_locate(thread, turn)
            behind = end  # where the end of the turn begins: white space and tokens that end turns
            while behind > start and (
                token_ids[behind - 1] in self.end_ids or self._is_white_space(token_ids[behind - 1])
            ):
                behind -= 1
            content_end = next((i for i in range(behind, end) if token_ids[i] in self.end_ids), end)
            is_ended = content_end < end or thread.get_tool_calls()[turn]
            whole_end = end if is_ended else self._end_of_turn(token_ids, end)  # tags around the content alone
            spans.append((turn, TurnSpan("assistant", start, content_end, whole_end)))
        return spans

    def _locate(self, thread: StringThread, text: str) -> list[_CharSpan]:
        """Where each located turn stands in ``text``, verified character by character against the sentinels."""
        messages, weights = thread.chat_messages(), thread.get_turn_weights()
        located = [i for i, message in enumerate(messages) if message["role"] == "assistant" or weights[i] > 0]
        if any("tool_calls" in message for message in messages):
            return [self._locate_by_prompt(thread, text, turn) for turn in located]
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
                return [self._locate_by_prompt(thread, text, turn) for turn in located]
            start = self._end_of_generation_prompt(thread, turn, text[:position])
            spans.append((turn, start, position + len(rendered)))
            position += len(rendered) + len(piece)
        if not text.startswith(pieces[0]) or position != len(text):
            raise self._cannot_locate(thread, located[0])
        return spans

    def _locate_by_prompt(self, thread: StringThread, text: str, turn: int) -> _CharSpan:
        """Where a turn stands when the template takes contents apart, as for reasoning, or adds tool calls to them.

        An assistant turn then extends from the end of the generation prompt of the thread before it to the next end of
        a turn.
        """
        calls = thread.get_tool_calls()[turn]
        start = self._end_of_generation_prompt(thread, turn, text)
        ends = [text.find(token, start) for token in (self.end_of_call_texts if calls else self.end_of_turn_texts)]
        if turn == len(thread) - 1 and self.end_of_turn_id is None:
            ends.append(len(text))
        end = min((end for end in ends if end >= 0), default=start)
        if thread.get_turns()[turn].role != "assistant" or not self._is_whole(thread, turn, text[start:end]):
            raise self._cannot_locate(thread, turn)
        return turn, start, end

    def _is_whole(self, thread: StringThread, turn: int, rendered: str) -> bool:
        """Whether a turn stands in its render: its calls, and its content as it was written but for reasoning, which
        templates lay out anew and leave out of earlier turns."""
        answer = thread.get_turns()[turn].content.rpartition(_END_OF_REASONING)[2].strip()
        return answer in rendered and all(call.name in rendered for call in thread.get_tool_calls()[turn])

    def _end_of_generation_prompt(self, thread: StringThread, turn: int, before: str) -> int:
        """Where the model starts to write an assistant turn: templates may put text of its own (an empty
        reasoning block, say) between the generation prompt and the content, and the model has to write that."""
        messages = thread.chat_messages()
        if messages[turn]["role"] != "assistant" or turn == 0:
            return len(before)
        try:
            prompt = self._apply_template(thread, messages[:turn], add_generation_prompt=True)
            if before.startswith(prompt):
                return len(prompt)
            history = self._apply_template(thread, messages[:turn])
        except RenderError:  # some templates refuse a thread cut here; then the content is all that is known
            return len(before)
        # The prompt may open a reasoning block that the turn does not have; then the turn begins where they part.
        parting = len(os.path.commonprefix([prompt, before]))  # noqa: RUF071 (by character is what is meant)
        return parting if before.startswith(history) and parting > len(history) else len(before)

    def _end_of_turn(self, token_ids: Sequence[int], content_end: int) -> int:
        """The position after the end-of-turn token that follows the content, white space between them included."""
        for position in range(content_end, len(token_ids)):
            if token_ids[position] in self.end_ids:
                return position + 1
            if not self._is_white_space(token_ids[position]):
                break
        return content_end

    def _find_end_of_turn(self, probe: StringThread) -> int | None:
        """The special token that the template writes after the probe's sentinel: the next one if it is in content, the
        last one if it is in a tool call, which may have special tokens of its own. None if there is none."""
        try:
            text = self._apply_template(probe, probe.chat_messages())
        except RenderError:
            return None
        _, found, tail = text.rpartition(_SENTINEL.format(0))
        special = {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        token_ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"] if found else []
        if any(probe.get_tool_calls()):
            return next((token_id for token_id in reversed(token_ids) if token_id in special), None)
        after_space = next((token_id for token_id in token_ids if not self._is_white_space(token_id)), None)
        return after_space if after_space in special else None

    def _is_white_space(self, token_id: int) -> bool:
        return not self._decode([token_id]).strip()

    def _decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        decoded = self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)

    def _apply_template(
        self, thread: StringThread, messages: list[dict[str, Any]], *, tokenize: bool = False, **options: Any
    ) -> Any:
        tools: list[Any] | None = [tool.as_schema() for tool in thread.tools] or None
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=tokenize, **options)
        except _refusals() as error:
            roles = ", ".join(message["role"] for message in messages) or "no turns"
            raise RenderError(
                f"the chat template of {self.name!r} refuses {_place(thread)} (turns: {roles}): {error}"
            ) from error

    def _check_tools_are_shown(self, thread: StringThread, text: str) -> None:
        """A template that knows no tools leaves them out in silence."""
        if missing := [tool.name for tool in thread.tools if tool.name not in text]:
            raise RenderError(
                f"the chat template of {self.name!r} does not show the tools of {_place(thread)} to the model (first: "
                f"{missing[0]!r}); use a template that does, or take them off with with_tools()"
            )

    def _cannot_locate(self, thread: StringThread, turn: int) -> RenderError:
        return RenderError(
            f"the chat template of {self.name!r} changes turn {turn} ({thread.get_turns()[turn].role}) of "
            f"{_place(thread)} when it renders it, so the turn's tokens cannot be located and trained exactly; "
            "write the content as the template does, or change the template"
        )


def _place(thread: StringThread) -> str:
    return thread.source or f"thread {thread.uuid()}"


def _refusals() -> tuple[type[Exception], ...]:
    """What a template raises, in its own words or by what it does with a thread."""
    from jinja2 import TemplateError  # noqa: PLC0415  # Transformers has it by then; the runner imports neither

    return TemplateError, ValueError, TypeError, KeyError, IndexError
