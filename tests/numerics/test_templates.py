"""Turns are located in the chat templates that people use: those that TRL ships, stock and for training, and others.

The oracle for training templates is Transformers' own mask of their ``{% generation %}`` tags.
"""

import re
from pathlib import Path

import pytest
import trl
from tiny_model import byte_tokenizer

from descant import StringThread, Tool, ToolCall
from descant.errors import ModelLoadError, RenderError
from descant.models.chat_template import Renderer

TEMPLATES = {path.stem: path.read_text() for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")}
TEMPLATES["mistral"] = (  # as Mistral-7B-Instruct-v0.2 has it
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
EOS = {  # of the models that the templates come from; by the beginning of a template's name
    "qwen": "<|im_end|>", "llama3": "<|eot_id|>", "gemma4": "<turn|>", "gemma": "<end_of_turn>", "phi": "<|endoftext|>",
    "diffusion": "<turn|>", "gptoss": "<|return|>", "cohere": "<|END_OF_TURN_TOKEN|>", "glm": "<|user|>",
    "deepseek": "<｜end▁of▁sentence｜>", "lfm": "<|im_end|>", "nemotron": "<|im_end|>",
    "idefics": "<|end_of_utterance|>", "smolvlm": "<end_of_utterance>", "muse": "<|eot|>", "llava": "</s>",
    "mistral": "</s>",
}  # fmt: skip
SPECIAL = re.compile(
    r"<[|｜][^<>'\"{}%\s]*?[|｜]>|<(?:start_of_turn|end_of_turn|end_of_utterance)>|<[a-z_]+\|>|<\|[a-z_]+>"
)
ADD = Tool("add", "Adds numbers.", {"type": "object", "properties": {"a": {"type": "integer", "description": "one"}}})
QUESTION = StringThread().user("What is 2+2?")
THREADS = {
    "one turn": QUESTION.assistant("It is 4."),
    "several turns": QUESTION.assistant("It is 4.").user("And 3+3?").assistant("It is 6."),
    "system": StringThread().system("Be brief.").user("What is 2+2?").assistant("It is 4."),
    "thinking": QUESTION.assistant("<think>\nAdd.\n</think>\n\nIt is 4.")
    .user("And 3+3?")
    .assistant("<think>\nAgain.\n</think>\n\nIt is 6."),
    "tools": StringThread(tools=[ADD])
    .system("Be brief.")
    .user("What is 2+2?")
    .assistant("", [ToolCall("add", {"a": 2}, "abcdefgh1")])
    .tool("4", "abcdefgh1")
    .assistant("It is 4."),
}
VISION = ("idefics3", "llava_next", "smolvlm")  # their contents are lists of parts
NO_TOOLS = (  # the template refuses them, leaves them out, or writes no end after a call
    "cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl",
    "mistral",
)  # fmt: skip
REFUSED = {
    *((name, kind) for name in VISION for kind in THREADS),
    *((name, "tools") for name in NO_TOOLS),
    ("gemma", "system"), ("mistral", "system"), ("deepseekv3", "tools"),
}  # fmt: skip
REFUSED |= {(f"{name}_training", kind) for name, kind in REFUSED if name != "deepseekv3"}
PAIRS = [(name, kind) for name in sorted(TEMPLATES) for kind in THREADS]


def renderer(name):
    tokenizer = byte_tokenizer()
    eos = next(token for prefix, token in EOS.items() if name.startswith(prefix))
    special = sorted({*SPECIAL.findall(TEMPLATES[name])} - {eos})
    tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": eos, "bos_token": "<s>"})
    tokenizer.chat_template = TEMPLATES[name]
    return Renderer(tokenizer, name)


def trained_texts(chat, thread):
    """The texts of the runs of trained tokens, cut where one turn follows on another."""
    rendered = chat.render(thread)
    return [chat.tokenizer.decode(rendered.token_ids[span.start : span.end]) for span in rendered.spans]


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair not in REFUSED])
def test_exactly_what_the_assistant_writes_is_located(name, kind):
    thread = THREADS[kind]
    chat = renderer(name)
    rendered = chat.render(thread)
    answers = [turn.content for turn in thread.get_turns() if turn.role == "assistant"]
    texts = trained_texts(chat, thread)
    assert len(texts) == len(answers)
    for text, answer, calls in zip(texts, answers, filter_calls(thread), strict=True):
        assert answer.rpartition("</think>")[2].strip() in text
        assert all(call.name in text for call in calls)
        assert not any(word in text for word in ("What is", "And 3", "Be brief", "Adds numbers", "[INST]"))
    for span, text in zip(rendered.spans, texts, strict=True):
        ends = rendered.token_ids[span.content_end : span.end]
        if name == "glm4moe" and span is rendered.spans[-1]:
            assert not ends  # it writes no end-of-turn token; a user's turn begins with what ends generation
        elif (name, kind) != ("diffusion_gemma_training", "tools"):  # its tags leave the end of a call out
            assert ends, f"no end of turn after {text!r}"
            assert ends[0] in chat.ends.end_ids
    weighted = [i for i, weight in enumerate(rendered.token_weights()) if weight > 0]
    assert weighted == [i for span in rendered.spans for i in range(span.start, span.end)]


def filter_calls(thread):
    turns = zip(thread.get_turns(), thread.get_tool_calls(), strict=True)
    return [calls for turn, calls in turns if turn.role == "assistant"]


@pytest.mark.parametrize(("name", "kind"), sorted(REFUSED & set(PAIRS)))
def test_what_cannot_be_located_is_an_error_that_says_where_and_what_to_do(name, kind):
    if name.removesuffix("_training") in VISION:
        with pytest.raises(
            ModelLoadError, match=r"no thread can be rendered.* the chat template of '\w+' (refuses|leaves)"
        ):
            renderer(name)
        return
    chat = renderer(name)
    with pytest.raises(
        RenderError, match=r"the chat template of '\w+' (refuses|changes turn \d|leaves out turn \d|does not show)"
    ) as error:
        chat.render(THREADS[kind])
    assert THREADS[kind].uuid() in str(error.value)


@pytest.mark.parametrize(("name", "kind"), [p for p in PAIRS if p[0].endswith("_training") and p not in REFUSED])
def test_the_tags_of_training_templates_are_followed_to_the_token(name, kind):
    chat, thread = renderer(name), THREADS[kind]
    tagged = chat.tokenizer.apply_chat_template(
        thread.chat_messages(), tools=[tool.as_schema() for tool in thread.tools] or None,
        tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    rendered = chat.render(thread)
    assert list(rendered.token_ids) == tagged["input_ids"]
    assert rendered.token_weights() == list(map(float, tagged["assistant_masks"]))


EMPTY = "<think>\n\n</think>\n\n"
EXPECTED = {
    ("qwen3", "one turn"): [f"{EMPTY}It is 4.<|im_end|>"],
    ("qwen3", "several turns"): ["It is 4.<|im_end|>", f"{EMPTY}It is 6.<|im_end|>"],
    ("qwen3", "thinking"): ["It is 4.<|im_end|>", "<think>\nAgain.\n</think>\n\nIt is 6.<|im_end|>"],
    ("qwen3", "tools"): [
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>', f"{EMPTY}It is 4.<|im_end|>",
    ],
    ("qwen3_training", "several turns"): [f"{EMPTY}It is 4.<|im_end|>\n", f"{EMPTY}It is 6.<|im_end|>\n"],
    ("gptoss", "several turns"): [
        "<|channel|>final<|message|>It is 4.<|end|>", "<|channel|>final<|message|>It is 6.<|return|>",
    ],
    ("gptoss", "tools"): [
        ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>',
        "<|channel|>final<|message|>It is 4.<|return|>",
    ],
    ("phi3", "several turns"): ["It is 4.<|end|>", "It is 6.<|end|>"],
    ("phi3_training", "several turns"): ["It is 4.<|end|>\n", "It is 6.<|end|>\n<|endoftext|>"],
    ("llama3", "system"): ["It is 4.<|eot_id|>"],
    ("llama3_1", "tools"): ['{"name": "add", "parameters": {"a": 2}}<|eot_id|>', "It is 4.<|eot_id|>"],
    ("gemma3", "system"): ["It is 4.<end_of_turn>"],
    ("gemma4", "tools"): ["<|tool_call>call:add{a:2}<tool_call|><|tool_response>", "It is 4.<turn|>"],
    ("mistral", "several turns"): ["It is 4.</s>", "It is 6.</s>"],
    # A prompt that opens a reasoning block: what the model writes begins within it.
    ("deepseek_r1_distill", "one turn"): ["It is 4.<｜end▁of▁sentence｜>"],
    ("qwen3_5_think", "thinking"): ["It is 4.<|im_end|>", "Again.\n</think>\n\nIt is 6.<|im_end|>"],
}  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED, ids=" ".join)
def test_the_trained_text_of_well_known_templates(case):
    name, kind = case
    assert trained_texts(renderer(name), THREADS[kind]) == EXPECTED[case]


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "llama3_1", "gemma4"])
def test_generation_ends_at_every_end_of_turn(name):
    """A model that calls a tool has to stop there, too."""
    chat = renderer(name)
    for text in trained_texts(chat, THREADS["tools"]):
        assert chat.tokenizer(text)["input_ids"][-1] in chat.stop_ids


def test_tools_reach_the_prompt():
    chat = renderer("qwen3")
    prompt = chat.tokenizer.decode(chat.render_prompt(THREADS["tools"].without_completion()).token_ids)
    assert '{"type": "function", "function": {"name": "add", "description": "Adds numbers."' in prompt
    assert prompt.endswith("<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(RenderError, match=r"'phi3' does not show the tools of .*'add'.*with_tools\(\)"):
        renderer("phi3").render_prompt(QUESTION.with_tools(ADD))
