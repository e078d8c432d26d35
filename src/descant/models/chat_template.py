"""Renderer: threads to tokens through the model's own chat template, and generated tokens back to text."""

from __future__ import annotations

import operator
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from descant.engine.jobs import GeneratedTokens
from descant.errors import ModelLoadError, RenderError
from descant.models.end_tokens import EndTokens
from descant.models.template import Template, place
from descant.models.turn_location import LocatedTurn, TurnLocator
from descant.text import quoted
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread, TurnSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Hi descant"


class _Tokens(NamedTuple):
    """The tokens of a text and, of each, the characters ``[start, end)`` of its own text.

    Tokens that strip the white space around them (``rstrip``, ``lstrip``) report it as theirs; here it belongs to none.
    """

    text: str
    ids: tuple[int, ...]
    starts: Sequence[int]
    ends: Sequence[int]


class Renderer:
    """Renders threads with a tokenizer's chat template and knows where each located turn stands.

    Threads are rendered *whole*, because templates may treat a turn differently when others follow it, and the render
    is verified: every content stands in it. See ``TurnLocator``.

    Args:
        tokenizer: a fast one of its own: rendering may run in several threads, and other code that sets it to pad or
            truncate would change what they see.
        name: what the model is called in messages.

    Raises:
        ModelLoadError: the tokenizer has no chat template or none that works, or is not a fast one (offsets are
            needed).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelLoadError(
                f"the tokenizer of {name!r} is {quoted(tokenizer)}, not a fast tokenizer; character offsets are needed"
            )
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.name = name
        self.template = Template(tokenizer, name)
        self.ends = EndTokens.of(self.template)
        self._locator = TurnLocator(self.template, self.ends)
        added = tokenizer.added_tokens_decoder
        self._stripping = frozenset(i for i, token in added.items() if token.lstrip or token.rstrip)
        self._end_texts = [added[i].content for i in self.ends.end_ids if i in added]
        self._opening, self._closing = self._probe()

    @property
    def end_of_turn_id(self) -> int | None:
        """What the template writes after an assistant's content; None if it writes no such token."""
        return self.ends.end_of_turn_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end generation."""
        return self.ends.stop_ids

    def _probe(self) -> tuple[str, str]:
        """The template's own text between generation prompt and content, and between content and end of turn."""
        refused = []
        for asked in (StringThread().user("a"), StringThread().system("b").user("a"), StringThread()):
            probe = asked.assistant(_PROBE)
            try:
                text, tagged = self.template.tagged_text(probe)
                located = self._locator.locate(probe, text, tagged)[-1]
            except RenderError as error:
                refused.append(error)
                continue
            start = text.index(_PROBE, located.start)
            tail = text[start + len(_PROBE) :]
            space = tail[: len(tail) - len(tail.lstrip())]
            return text[located.start : start], space * tail.lstrip().startswith(self.ends.turn_texts)
        raise ModelLoadError(f"no thread can be rendered; the first that was tried: {refused[0]}")

    def check_fits(self, model: Any, model_stop_ids: Collection[int]) -> None:
        """Refuse a tokenizer that is not the model's, and warn of what will not be learned.

        Raises:
            ModelLoadError: tokens that the model does not have, tokens of the model that the tokenizer does not have,
                or no tokens at all.
        """
        vocabulary = model.get_input_embeddings().weight.shape[0]
        added = self.tokenizer.added_tokens_decoder
        wrong = f"the tokenizer of {self.name!r} is not this model's: "
        if not self.tokenizer("the quick brown fox 0123456789", add_special_tokens=False)["input_ids"]:
            raise ModelLoadError(
                f"{wrong}it has a vocabulary of {len(self.tokenizer)} and makes no tokens of text (its files may be "
                "missing); save the tokenizer beside the model"
            )
        ordinary = (token_id for token_id in self.tokenizer.get_vocab().values() if token_id not in added)
        largest = max([*ordinary, *self.ends.stop_ids])
        if largest >= vocabulary:
            raise ModelLoadError(
                f"{wrong}it has token {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), and the model has "
                f"{vocabulary}; use the tokenizer that was saved with the model, or resize the model's embeddings"
            )
        for token_id in sorted(token_id for token_id in model_stop_ids if token_id < vocabulary):
            token = self.tokenizer.convert_ids_to_tokens(token_id)
            if token is None:
                raise ModelLoadError(
                    f"{wrong}the model ends its texts with token {token_id} (eos_token_id), which the tokenizer does "
                    f"not have (its vocabulary has {len(self.tokenizer)})"
                )
            if token_id not in added:
                warnings.warn(
                    f"{self.name!r}: generation ends at token {token_id} (eos_token_id of the model), which is the "
                    f"text {token!r} in this tokenizer; set model.generation_config.eos_token_id",
                    stacklevel=3,
                )
        if self.end_of_turn_id is None:
            warnings.warn(
                f"{self.name!r}: the chat template writes no end-of-turn token after an assistant's content, so a "
                "model that is trained on it does not learn to stop; what it writes must be one token of the "
                "tokenizer (tokenizer.add_tokens)",
                stacklevel=3,
            )

    def render(self, thread: StringThread) -> TokenizedThread:
        """All tokens of a thread, with its assistant turns and its weighted turns located.

        Raises:
            RenderError: the template refuses the thread, or leaves out or changes a turn.
        """
        return self._render(thread)[0]

    def weighted_text(self, thread: StringThread, num_tokens: int | None = None) -> list[tuple[str, float]]:
        """The text of a thread, or of its first tokens, in pieces, each with the loss weight of its tokens.

        Raises:
            RenderError: as for ``render``.
        """
        rendered, tokens = self._render(thread)
        weights = rendered.token_weights()[:num_tokens]
        pieces, position, place = [], 0, 0
        for weight, run in groupby(weights):
            first, position = position, position + len(list(run))
            if weight > 0:  # what stands between tokens is not trained
                start, end = max(place, tokens.starts[first]), tokens.ends[position - 1]
                pieces += [(tokens.text[place:start], 0.0), (tokens.text[start:end], weight)]
                place = end
        end = len(tokens.text) if position == len(tokens.ids) else tokens.ends[position - 1]
        return [piece for piece in (*pieces, (tokens.text[place:end], 0.0)) if piece[0]]

    def _render(self, thread: StringThread) -> tuple[TokenizedThread, _Tokens]:
        text, tagged = self.template.tagged_text(thread)
        self.template.check_tools_are_shown(thread, text)
        located = self._locator.locate(thread, text, tagged)
        tokens = self._encode(text)
        weights = thread.get_turn_weights()
        spans = tuple(self._span(thread, tokens, turn) for turn in located)
        turn_weights = tuple(weights[turn.turn] for turn in located)
        return TokenizedThread(thread, tokens.ids, spans, turn_weights), tokens

    def render_prompt(self, thread: StringThread) -> TokenizedThread:
        """All tokens of a thread, followed by the template's opening of an assistant turn.

        Raises:
            RenderError: the template refuses the thread, or leaves out or changes a turn.
        """
        text = self.template.prompt(thread, thread.chat_messages())
        self.template.check_tools_are_shown(thread, text)
        self._locator.check_whole(thread, text, is_prompt=True)
        return TokenizedThread(thread, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def written_completion(self, thread: StringThread) -> str:
        """The final assistant turn of a thread as the model would write it: what ``append_generated`` makes of its
        tokens. Tool calls and reasoning are in it, as the template lays them out.

        Raises:
            RenderError: as for ``render``.
        """
        rendered = self.render(thread)
        span = rendered.spans[-1]
        return self._content(rendered.token_ids[span.start : span.content_end])

    def append_generated(
        self, prompt: TokenizedThread, generated: GeneratedTokens, stop_strings: Sequence[str] = ()
    ) -> TokenizedThread:
        """The prompt with the generated turn appended, whose tokens are kept as they were generated.

        Its text ends before the end-of-turn token or the stop string that ended it, and is without what the template
        would write around it: rendered again, it gives these tokens.
        """
        start, end = len(prompt.token_ids), len(prompt.token_ids) + len(generated.token_ids)
        content_end = end - (generated.finish_reason == "stop")
        content = self._decode(generated.token_ids[: content_end - start])
        if generated.finish_reason == "stop_string":  # the same text in which the engine found it
            content = content[: min(content.find(string) for string in stop_strings if string in content)]
        return TokenizedThread(
            thread=prompt.thread.assistant(self._without_markup(content)),
            token_ids=(*prompt.token_ids, *generated.token_ids),
            spans=(*prompt.spans, TurnSpan("assistant", start, content_end, end)),
            turn_weights=(*prompt.turn_weights, 1.0),
            finish_reason=generated.finish_reason,
            logprobs=generated.logprobs,
        )

    def _encode(self, text: str) -> _Tokens:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: tuple[int, ...] = tuple(encoding["input_ids"])
        starts, ends = map(list, zip(*encoding["offset_mapping"], strict=True)) if ids else ([], [])
        if self._stripping:
            for i in [i for i, token_id in enumerate(ids) if token_id in self._stripping]:
                token = text[starts[i] : ends[i]]
                starts[i] += len(token) - len(token.lstrip())
                ends[i] -= len(token) - len(token.rstrip())
        return _Tokens(text, ids, starts, ends)

    def _span(self, thread: StringThread, tokens: _Tokens, located: LocatedTurn) -> TurnSpan:
        """The tokens of a located turn."""
        role, content = thread.get_turns()[located.turn]
        first = content_end = bisect_left(tokens.starts, located.end)
        if located.start < located.end:
            # A token that reaches into the turn from before it belongs to it: the model has to write its text.
            first = min(bisect_right(tokens.ends, located.start), content_end)
        self._check_nothing_is_lost(thread, tokens, located, first, content_end)
        if located.is_tagged:
            has_calls = bool(thread.get_tool_calls()[located.turn])
            content_end, end = self._tagged_ends(tokens.ids, first, content_end, has_calls)
        else:
            end = self._end_of_turn(tokens.ids, content_end)
        if first < content_end and tokens.starts[first] < located.start and role == "assistant":
            token = tokens.text[tokens.starts[first] : tokens.ends[first]]
            self.template.say_once(
                "straddling",
                "the tokens of a prompt are not the beginning of the tokens of prompt and answer: they meet within "
                f"the token {quoted(token)} (first in {place(thread)}); end the template's generation prompt before "
                "white space, or begin answers with none",
            )
        is_weighted = thread.get_turn_weights()[located.turn] > 0
        if is_weighted and (ending := next((text for text in self._end_texts if text in content), None)):
            raise RenderError(
                f"turn {located.turn} ({role}) of {place(thread)} contains {ending!r}, at which the model stops: "
                "nothing after it could be generated; take it out, the chat template writes the ends of turns"
            )
        if is_weighted and end == content_end and self.end_of_turn_id is not None:
            self.template.say_once(
                "end",
                f"the tokenizer finds no end-of-turn token behind turn {located.turn} of {place(thread)}, so a model "
                "that is trained on it does not learn to stop there",
            )
        return TurnSpan(role, first, content_end, end)

    def _check_nothing_is_lost(
        self, thread: StringThread, tokens: _Tokens, located: LocatedTurn, first: int, content_end: int
    ) -> None:
        """Some tokenizers drop characters that they do not know."""
        starts = [*tokens.starts[first:content_end], located.end]
        ends = [located.start, *tokens.ends[first:content_end]]
        if all(map(operator.le, starts, ends)):
            return
        lost = "".join(tokens.text[end:start] for start, end in zip(starts, ends, strict=True) if start > end).strip()
        if lost:
            raise RenderError(
                f"the tokenizer of {self.name!r} has no tokens for {quoted(lost, 40)} in turn {located.turn} "
                f"({thread.get_turns()[located.turn].role}) of {place(thread)}"
            )

    def _tagged_ends(self, ids: Sequence[int], start: int, end: int, has_calls: bool) -> tuple[int, int]:
        """Where content and turn end, of tokens that the template tags: around a content or around a whole turn."""
        behind = end  # where the end of the turn begins: white space and tokens that end turns
        while behind > start and (ids[behind - 1] in self.ends.end_ids or self._is_white_space(ids[behind - 1])):
            behind -= 1
        content_end = next((i for i in range(behind, end) if ids[i] in self.ends.end_ids), end)
        return content_end, end if content_end < end or has_calls else self._end_of_turn(ids, end)

    def _end_of_turn(self, token_ids: Sequence[int], content_end: int) -> int:
        """The position after the end-of-turn token that follows the content, white space between them included."""
        for position in range(content_end, len(token_ids)):
            if token_ids[position] in self.ends.end_ids:
                return position + 1
            if not self._is_white_space(token_ids[position]):
                break
        return content_end

    def _is_white_space(self, token_id: int) -> bool:
        return not self._decode([token_id]).strip()

    def _content(self, token_ids: Sequence[int]) -> str:
        return self._without_markup(self._decode(token_ids))

    def _without_markup(self, written: str) -> str:
        return written.removeprefix(self._opening).removesuffix(self._closing)

    def _decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        decoded = self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)
