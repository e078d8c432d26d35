"""TurnLocator: where the turns of a thread stand in its render, and that none is missing there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from descant.errors import RenderError
from descant.models.end_tokens import EndTokens
from descant.models.template import SENTINEL, Template, place
from descant.text import quoted
from descant.threads.thread import StringThread

END_OF_REASONING = "</think>"
_SENTINELS = re.compile(SENTINEL.format(r"(\d+)"))
_BEGUN_TAG = re.compile(r"[<\[{][^\s>\]}]*$")  # two texts may part within one
_SWITCH = re.compile(r"/(no_)?think\b")  # of reasoning, in a system turn: templates act on it and take it out


class LocatedTurn(NamedTuple):
    """A turn, and the characters ``[start, end)`` of the render that the model writes as its content.

    Where the template's tags say it, its end of turn may be among them.
    """

    turn: int
    start: int
    end: int
    is_tagged: bool = False


class TurnLocator:
    """Where the turns of a thread stand in its render, and that none is missing there.

    The thread is rendered a second time with sentinels in place of contents. All must be there, and between them the
    two renders must agree. Only turns that templates take apart (reasoning, tool calls) are left as they are; these
    stand between generation prompt and end of turn.
    """

    def __init__(self, template: Template, ends: EndTokens) -> None:
        self._template = template
        self._ends = ends

    def locate(self, thread: StringThread, text: str, tagged: list[tuple[int, int]]) -> list[LocatedTurn]:
        """The assistant turns and weighted turns.

        Raises:
            RenderError: a turn is left out or changed, so that it cannot be located.
        """
        turns, weights = thread.get_turns(), thread.get_turn_weights()
        assistants = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        located = sorted({*assistants, *(i for i, weight in enumerate(weights) if weight > 0)})
        contents = self.check_whole(thread, text, located)
        self._say_if_reasoning_is_lost(thread, text)
        filled = [(start, end) for start, end in tagged if start < end]  # there may be tags around nothing
        tagged = filled if len(filled) == len(assistants) else tagged
        if located == assistants and len(tagged) == len(assistants):
            for turn, (start, end) in zip(assistants, tagged, strict=True):
                content_start, content_end = contents.get(turn, (start, end))
                is_within = start <= content_start and content_end <= end
                if not is_within or (turn not in contents and not self._is_whole(thread, turn, text[start:end])):
                    raise self._template.changes(thread, turn)
            return [LocatedTurn(turn, *run, True) for turn, run in zip(assistants, tagged, strict=True)]
        spans = []
        for turn in located:
            if turn in contents:
                start, end = contents[turn]
                spans.append(LocatedTurn(turn, self._end_of_generation_prompt(thread, turn, text[:start]), end))
            else:
                spans.append(self._locate_by_prompt(thread, text, turn))
        return spans

    def check_whole(
        self, thread: StringThread, text: str, located: Collection[int] = (), *, is_prompt: bool = False
    ) -> dict[int, tuple[int, int]]:
        """Where each content stands, if text and sentinels agree everywhere; else nothing.

        Raises:
            RenderError: the content of a turn is not in the text.
        """
        messages, calls = thread.chat_messages(), thread.get_tool_calls()
        masked = {
            i
            for i, message in enumerate(messages)
            if (i in located or message["content"].strip()) and not _is_taken_apart(message["content"], calls[i])
        }
        masks = [{**m, "content": SENTINEL.format(i)} if i in masked else m for i, m in enumerate(messages)]
        render = self._template.prompt if is_prompt else self._template.text
        pieces = _SENTINELS.split(render(thread, masks))
        turns = [int(turn) for turn in pieces[1::2]]
        if missing := masked.difference(turns):
            raise self._template.leaves_out(thread, min(missing))
        contents = _contents(messages, turns, pieces[::2], text)
        if contents is None or any(turns.count(turn) > 1 for turn in located):
            for turn in masked.difference(located):
                if not _stands(messages[turn]["content"], text):
                    raise self._template.changes(thread, turn)
            return {}
        return contents

    def _locate_by_prompt(self, thread: StringThread, text: str, turn: int) -> LocatedTurn:
        """Where a turn stands when the template takes contents apart, as for reasoning, or adds tool calls to them.

        An assistant turn then extends from the end of the generation prompt of the thread before it to the next end of
        a turn.
        """
        calls = thread.get_tool_calls()[turn]
        start = self._end_of_generation_prompt(thread, turn, text)
        ends = [text.find(token, start) for token in (self._ends.call_texts if calls else self._ends.turn_texts)]
        if turn == len(thread) - 1 and self._ends.end_of_turn_id is None:
            ends.append(len(text))
        end = min((end for end in ends if end >= 0), default=start)
        if thread.get_turns()[turn].role != "assistant" or not self._is_whole(thread, turn, text[start:end]):
            raise self._template.changes(thread, turn)
        return LocatedTurn(turn, start, end)

    def _is_whole(self, thread: StringThread, turn: int, rendered: str) -> bool:
        """Whether a turn stands in its render: its calls, and its content as it was written but for reasoning, which
        templates lay out anew and leave out of earlier turns."""
        answer = thread.get_turns()[turn].content.rpartition(END_OF_REASONING)[2].strip()
        calls = thread.get_tool_calls()[turn]
        leaves = [leaf for call in calls for leaf in _leaves({call.name: json.loads(str(call.arguments))})]
        return answer in rendered and all(any(form in rendered for form in forms) for forms in leaves)

    def _end_of_generation_prompt(self, thread: StringThread, turn: int, before: str) -> int:
        """Where the model starts to write an assistant turn: templates may put text of its own (an empty
        reasoning block, say) between the generation prompt and the content, and the model has to write that."""
        messages = thread.chat_messages()
        if messages[turn]["role"] != "assistant" or turn == 0:
            return len(before)
        try:
            prompt = self._template.prompt(thread, messages[:turn])
            if before.startswith(prompt):
                return len(prompt)
            history = self._template.text(thread, messages[:turn])
        except RenderError:  # some templates refuse a thread cut here; then the content is all that is known
            return len(before)
        parting = len(os.path.commonprefix([prompt, before]))  # noqa: RUF071 (by character is what is meant)
        parting = len(_BEGUN_TAG.sub("", before[:parting]))
        if turn == len(messages) - 1:
            self._template.say_once(
                "prompt",
                "a prompt is not the beginning of the same thread with its answer, so what is trained is not what is "
                f"generated from: the prompt has {quoted(prompt[parting:], 40)} where the thread has "
                f"{quoted(before[parting:], 40)} (first in {place(thread)})",
            )
        if not _is_taken_apart(messages[turn]["content"], thread.get_tool_calls()[turn]):
            return len(before)
        # The prompt may open a reasoning block that the turn does not have; then the turn begins where they part.
        return parting if before.startswith(history) and parting > len(history) else len(before)

    def _say_if_reasoning_is_lost(self, thread: StringThread, text: str) -> None:
        """Templates leave reasoning out of earlier turns on purpose; out of the last one it is missed."""
        reasoning, found, _ = (thread.completion() or "").rpartition(END_OF_REASONING)
        if found and not _stands(reasoning.replace("<think>", ""), text):
            self._template.say_once(
                "reasoning",
                "the chat template leaves the reasoning of answers out, so it is not trained (first in "
                f"{place(thread)})",
            )


def _is_taken_apart(content: str, calls: Collection[Any]) -> bool:
    return bool(calls) or END_OF_REASONING in content


def _contents(
    messages: list[dict[str, Any]], turns: list[int], pieces: list[str], text: str
) -> dict[int, tuple[int, int]] | None:
    """Where the contents of ``turns`` stand between ``pieces`` of the template's own text; None if they do not."""
    spans: dict[int, tuple[int, int]] = {}
    position = len(pieces[0])
    if not text.startswith(pieces[0]):
        return None
    for turn, piece in zip(turns, pieces[1:], strict=True):
        for form in _forms(messages[turn]["content"]):
            if text.startswith(form, position) and text.startswith(piece, position + len(form)):
                break
        else:
            return None
        spans[turn] = (position, position + len(form))
        position += len(form) + len(piece)
    return spans if position == len(text) else None


def _forms(content: str) -> Iterator[str]:
    """How templates may write a content: as it is, trimmed, or as a string of JSON."""
    yield from (content, content.strip(), content.lstrip(), content.rstrip())
    for ensure_ascii in (False, True):
        yield json.dumps(content, ensure_ascii=ensure_ascii)[1:-1]


def _stands(content: str, text: str) -> bool:
    """Whether a content is in a text, white space and switches of reasoning aside."""
    compact = "".join(text.split())
    return any("".join(_SWITCH.sub("", form).split()) in compact for form in _forms(content))


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    """The keys and plain values in arguments of a call, each in the forms in which templates write them."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield tuple(_forms(value))
    else:
        yield json.dumps(value), str(value)
