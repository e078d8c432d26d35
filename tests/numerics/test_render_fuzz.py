"""Templates x threads x tokenizers: no token outside of a weighted turn carries weight, and no weighted turn is without
its content. The oracle is a second writer of the same templates, in Python, which knows whose every character is.

More cases: ``DESCANT_FUZZ_CASES=20000 pytest tests/numerics/test_render_fuzz.py``
"""

import functools
import os
import warnings
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from descant import StringThread
from descant.engine.jobs import GeneratedTokens
from descant.errors import RenderError
from descant.models.chat_template import Renderer

NUM_CASES = int(os.environ.get("DESCANT_FUZZ_CASES", "600"))
CASES_EACH = 4  # threads for every template and tokenizer
ROLES = ("system", "user", "assistant", "tool")
EMPTY_REASONING = "<think>\n\n</think>\n\n"


class Design(NamedTuple):
    """A chat template, written twice: for Jinja, and in Python."""

    head: str  # R is the role and N the number of the turn
    end: str
    end_of_last: str | None  # None: as of every turn
    opening: str  # before the content of the last turn
    trims: bool
    has_prompt: bool
    tags: str
    leaves_out: str
    first: str

    def jinja(self):
        head = self.head.replace("R", "{{ m['role'] }}").replace("N", "{{ loop.index }}")
        content = "{{ m['content'] | trim }}" if self.trims else "{{ m['content'] }}"
        end = self.end
        if self.end_of_last is not None:
            end = f"{{% if loop.last %}}{self.quoted(self.end_of_last)}{{% else %}}{self.quoted(self.end)}{{% endif %}}"
        else:
            end = self.quoted(end)
        opening = f"{{% if loop.last %}}{self.quoted(self.opening)}{{% endif %}}" if self.opening else ""
        written = {
            "none": f"{opening}{content}{end}",
            "content": f"{{% generation %}}{opening}{content}{{% endgeneration %}}{end}",
            "turn": f"{{% generation %}}{opening}{content}{end}{{% endgeneration %}}",
        }[self.tags]
        body = f"{head}{{% if m['role'] == 'assistant' %}}{written}{{% else %}}{content}{end}{{% endif %}}"
        if self.leaves_out == "tool":
            body = f"{{% if m['role'] != 'tool' %}}{body}{{% endif %}}"
        if self.leaves_out == "later system":
            body = f"{{% if m['role'] != 'system' or loop.first %}}{body}{{% endif %}}"
        number = self.head.replace("R", "assistant").replace("N", "{{ messages | length + 1 }}")
        prompt = f"{{% if add_generation_prompt %}}{number}{{% endif %}}" if self.has_prompt else ""
        return f"{self.first}{{% for m in messages %}}{body}{{% endfor %}}{prompt}"

    @staticmethod
    def quoted(text):
        return f"{{{{ {text!r} }}}}" if text else ""

    def pieces(self, turns, weights):
        """The text, as (characters, number of the turn, whether its author writes them)."""
        made = [(self.first, None, False)]
        others = (weight for turn, weight in zip(turns, weights, strict=True) if turn[0] != "assistant")
        has_tags = self.tags != "none" and not any(others)  # tags are for assistants
        for number, (role, content) in enumerate(turns):
            is_last = number == len(turns) - 1
            if (self.leaves_out == "tool" and role == "tool") or (
                self.leaves_out == "later system" and role == "system" and number > 0
            ):
                continue
            head = self.head.replace("R", role).replace("N", str(number + 1))
            made.append((head.rstrip(" "), number, False))
            # There is no prompt before the first turn, and none in the thread if it would change the turn before.
            is_answer = role == "assistant" and number > 0
            if self.opening and is_answer:
                is_answer = turns[number - 1][0] != "assistant"
            is_left_to_the_model = is_answer and not self.has_prompt and not has_tags
            made.append((head[len(head.rstrip(" ")) :], number, is_left_to_the_model))
            if is_last and role == "assistant":
                made.append((self.opening, number, has_tags or (is_answer and self.has_prompt)))
            made.append((content.strip() if self.trims else content, number, True))
            end = self.end_of_last if is_last and self.end_of_last is not None else self.end
            space = end[: len(end) - len(end.lstrip())]
            token = next((token for token in ("<|end|>", "<|last|>") if end.startswith(token, len(space))), "")
            is_tagged = has_tags and self.tags == "turn" and role == "assistant"
            made.append((space + token, number, bool(token) or is_tagged))
            made.append((end[len(space + token) :], number, is_tagged))
        return made


DESIGNS = st.builds(
    Design,
    head=st.sampled_from(["<|start|>R\n", "<|R|>\n", "<|R|>", "### R:\n", "R: ", "<|R|>N\n", "[R]"]),
    end=st.sampled_from(["<|end|>", "<|end|>\n", "\n<|end|>\n", "", "\n", "### End\n"]),
    end_of_last=st.sampled_from([None, None, "", "<|last|>"]),
    opening=st.sampled_from(["", "", EMPTY_REASONING]),
    trims=st.booleans(),
    has_prompt=st.sampled_from([True, True, False]),
    tags=st.sampled_from(["none", "none", "content", "turn"]),
    leaves_out=st.sampled_from(["", "", "tool", "later system"]),
    first=st.sampled_from(["", "<|start|>"]),
).filter(
    # Where ends or openings depend on what follows, prompts are no beginnings of threads, which is warned of.
    lambda design: design.end_of_last is None or (design.has_prompt and not design.opening)
)
MERGES = [(":", "Ġ"), ("Ċ", "a"), ("Ġ", "a"), ("a", "b"), ("Ċ", "Ċ"), (":", "a"), ("Ġ", "Ġ"), ("]", "b"), ("b", "Ċ")]
FLAGS = st.sets(st.sampled_from(["lstrip", "rstrip"]))
TOKENS = [
    "<|start|>",
    "<|end|>",
    "<|last|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<think>",
    "</think>",
]
ADDED = st.fixed_dictionaries({token: st.tuples(FLAGS, st.booleans()) for token in TOKENS})
PARTS = ["a", "b", " ", "\n", "ab", "é", ":", "7", "<", "|", "\u3000", "<|start|>", "<|end|>", "end"]
CONTENTS = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
TURNS = st.lists(st.tuples(st.sampled_from(ROLES), CONTENTS, st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=5)


@functools.cache
def backend(merges):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def build(design, merges, added):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend(tuple(merges)), chat_template=design.jinja())
    for token, (flags, special) in added.items():
        tokenizer.add_tokens(
            [AddedToken(token, normalized=False, special=special, **dict.fromkeys(flags, True))], special_tokens=special
        )
    return Renderer(tokenizer, "tiny")


@settings(max_examples=NUM_CASES // CASES_EACH)
@given(DESIGNS, st.lists(st.sampled_from(MERGES), unique=True), ADDED, st.lists(TURNS, min_size=CASES_EACH))
def test_weight_is_on_weighted_turns_and_on_all_of_them(design, merges, added, cases):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat = build(design, merges, added)
        for turns in cases[:CASES_EACH]:
            weights = [weight for _, _, weight in turns]
            thread = StringThread([(role, content) for role, content, _ in turns]).with_turn_weights(weights)
            pieces = design.pieces(thread.get_turns(), weights)
            try:
                rendered = chat.render(thread)
            except RenderError as error:
                check_refusal(str(error), thread, pieces, chat)
            else:
                check_weights(chat, rendered, weights, pieces)
                check_prompt(chat, thread, rendered)


def check_weights(chat, rendered, weights, pieces):
    """Every token against the author of its characters."""
    text = "".join(characters for characters, _, _ in pieces)
    assert chat.tokenizer.apply_chat_template(rendered.thread.chat_messages(), tokenize=False) == text
    owners = [weights[turn] if written else 0.0 for characters, turn, written in pieces for _ in characters]
    offsets = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    covered = [0.0] * len(text)
    vocabulary = chat.tokenizer.added_tokens_decoder
    for position, ((start, end), weight) in enumerate(zip(offsets, rendered.token_weights(), strict=True)):
        own, is_added = list(range(start, end)), rendered.token_ids[position] in vocabulary
        if is_added:  # white space that it strips belongs to nobody
            own = [i for i in own if not text[i].isspace()]
        for i in own:
            covered[i] = max(covered[i], weight)
        expected = {owners[i] for i in own}
        if position == 0 or (len(expected) > 1 and not is_added):
            continue  # the first token is never predicted; one that reaches over an edge belongs to the turn
        if text[start:end].strip():
            assert {weight} == expected, (text[start:end], position)
        elif weight:
            assert any(owners[max(0, start - 1) : end + 1]), "white space far from a weighted turn"
    first_end = offsets[0][1] if offsets else 0
    for i, owner in enumerate(owners):
        if owner and i >= first_end and not text[i].isspace():
            assert covered[i] == owner, f"{text[i]!r} of a weighted turn has no weight"


def check_refusal(message, thread, pieces, chat):
    """What is refused is a turn that is not in the text, or one in which the model would stop."""
    shown = {turn for _, turn, _ in pieces}
    hidden = [i for i in range(len(thread)) if i not in shown]
    ends = [
        token for token in ("<|end|>", "<|last|>") if chat.tokenizer.convert_tokens_to_ids(token) in chat.ends.end_ids
    ]
    stopping = [
        i
        for i, (turn, weight) in enumerate(zip(thread.get_turns(), thread.get_turn_weights(), strict=True))
        if weight and any(end in turn.content for end in ends)
    ]
    if "leaves out" in message:
        assert hidden, message
    else:
        assert "at which the model stops" in message, message
        assert stopping, message


def check_prompt(chat, thread, rendered):
    """An answer generated token by token has the content that the reference has."""
    if thread.completion() is None or not rendered.spans:
        return
    span = rendered.spans[-1]
    ids = rendered.token_ids[span.start : span.end]
    first_end = next((i for i, token_id in enumerate(ids) if token_id in chat.stop_ids), None)
    has_ended, ids = first_end is not None, ids[: None if first_end is None else first_end + 1]
    prompt = chat.render_prompt(thread.without_completion()) if len(thread) > 1 else None
    if prompt is None or not has_ended:
        return
    generated = chat.append_generated(prompt, GeneratedTokens(ids, (0.0,) * len(ids), "stop"))
    assert generated.thread.last_content().strip() == chat.written_completion(thread).strip()
