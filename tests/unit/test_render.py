import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from descant import StringThread
from descant.engine.jobs import GeneratedTokens
from descant.errors import ModelLoadError, RenderError
from descant.models.chat_template import Renderer

LLAMA_LIKE = (
    "{{ '<|begin|>' }}{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAKES_REASONING_APART = (  # as Qwen3's does: reasoning is cut out, laid out anew, and left out of all but the last turn
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in text %}"
    "{% set reasoning = text.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set text = text.split('</think>')[-1].strip() %}"
    "{% if loop.last %}<think>\n{{ reasoning }}\n</think>\n\n{% endif %}{{ text }}{% else %}{{ text }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOUTING = "{% for m in messages %}{{ m['content'] | replace('quiet', 'QUIET') }}<|im_end|>{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}[{{ m['content'] }}]{% endfor %}"
)


def renderer(template=None, special=()):
    tokenizer = byte_tokenizer()
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    if template:
        tokenizer.chat_template = template
    return Renderer(tokenizer, "tiny")


def trained_text(rendering, made_by):
    """The text of the tokens that carry weight, run by run."""
    runs, current = [], []
    for token_id, weight in zip(rendering.token_ids, rendering.token_weights(), strict=True):
        if weight > 0:
            current.append(token_id)
        elif current:
            runs.append(made_by.tokenizer.decode(current))
            current = []
    return [*runs, made_by.tokenizer.decode(current)] if current else runs


def test_loss_is_on_exactly_the_weighted_turns_with_their_end_of_turn_token():
    thread = StringThread().system("s").user("12+34=").assistant("46").user("and é?").assistant("é!")
    chat = renderer()
    rendering = chat.render(thread)
    assert trained_text(rendering, chat) == ["46<|im_end|>", "é!<|im_end|>"]
    assert [chat.tokenizer.decode(turn.content) for turn in rendering.get_turns()] == ["46", "é!"]
    assert rendering.len_last_turn() == 3  # two bytes of é and "!"
    last = chat.render(thread.with_weight_last_assistant_turn())
    assert trained_text(last, chat) == ["é!<|im_end|>"]
    assert trained_text(rendering.with_weight_last_assistant_turn(), chat) == ["é!<|im_end|>"]
    user = chat.render(thread.with_turn_weights([0, 0.5, 0, 0, 1]))
    assert trained_text(user, chat) == ["12+34=<|im_end|>", "é!<|im_end|>"]
    assert set(user.token_weights()) == {0, 0.5, 1}


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=3))
def test_every_located_turn_is_the_turn(exchanges):
    chat = renderer()
    thread = StringThread()
    for user, assistant in exchanges:
        thread = thread.user(user).assistant(assistant)
    rendering = chat.render(thread)
    assert trained_text(rendering, chat) == [f"{assistant}<|im_end|>" for _, assistant in exchanges]


def test_the_prompt_is_the_beginning_of_the_whole():
    chat = renderer()
    thread = StringThread().user("12+34=")
    prompt = chat.render_prompt(thread).token_ids
    whole = chat.render(thread.assistant("46")).token_ids
    assert whole[: len(prompt)] == prompt


def test_a_generated_turn_keeps_its_tokens():
    chat = renderer()
    prompt = chat.render_prompt(StringThread().user("12+34="))
    ids = chat.tokenizer("46<|im_end|>")["input_ids"]
    stopped = chat.append_generated(prompt, GeneratedTokens(tuple(ids), (), "stop"))
    assert stopped.token_ids == prompt.token_ids + tuple(ids)
    assert stopped.thread.last_content() == "46"
    assert stopped.len_last_turn() == 2
    assert sum(stopped.token_weights()) == 3
    cut = chat.append_generated(prompt, GeneratedTokens(tuple(ids[:2]), (), "length"))
    assert cut.thread.last_content() == "46"
    assert sum(cut.token_weights()) == 2
    assert cut.last_content() == ids[:2]


def test_a_template_that_trims_is_followed():
    chat = renderer(LLAMA_LIKE, ["<|begin|>", "<|start|>", "<|stop|>", "<|end|>"])
    assert chat.tokenizer.decode([chat.end_of_turn_id]) == "<|end|>"
    rendering = chat.render(StringThread().user(" u ").assistant("  yes "))
    assert trained_text(rendering, chat) == ["yes<|end|>"]


def test_what_the_model_has_to_write_before_the_content_is_trained():
    chat = renderer(REASONING)
    rendering = chat.render(StringThread().user("u").assistant("a").user("v").assistant("b"))
    assert trained_text(rendering, chat) == ["a<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"]


def test_reasoning_that_the_template_lays_out_anew_is_trained_as_rendered():
    chat = renderer(TAKES_REASONING_APART)
    thread = StringThread().user("1").assistant("<think>a</think>one").user("2").assistant("<think>b</think>two")
    rendering = chat.render(thread)
    assert trained_text(rendering, chat) == ["one<|im_end|>", "<think>\nb\n</think>\n\ntwo<|im_end|>"]
    mixed = chat.render(StringThread().user("1").assistant("plain").user("2").assistant("<think>b</think>two"))
    assert trained_text(mixed, chat) == ["plain<|im_end|>", "<think>\nb\n</think>\n\ntwo<|im_end|>"]


def test_a_token_that_reaches_into_the_turn_is_trained():
    """The merge " 4" straddles the generation prompt "Assistant: " and the content "46"."""
    vocabulary = {token: index for index, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ4"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "4")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    chat = Renderer(tokenizer, "tiny")
    rendering = chat.render(StringThread().user("x").assistant("46"))
    assert trained_text(rendering, chat) == [" 46<|im_end|>"]


def test_a_turn_that_cannot_be_located_is_an_error_that_says_so():
    thread = StringThread([("user", "u"), ("assistant", "quiet")], source="data.jsonl:7")
    with pytest.raises(RenderError, match=r"changes turn 1 \(assistant, 'quiet'\) of data.jsonl:7") as error:
        renderer(SHOUTING).render(thread)
    assert "'tiny'" in str(error.value)


def test_a_template_that_refuses_is_quoted():
    with pytest.raises(RenderError, match=r"roles must alternate user/assistant") as error:
        renderer(ALTERNATING).render(StringThread().system("s").user("u"))
    assert "turns: system, user" in str(error.value)


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelLoadError, match=r"no chat template.*tokenizer\.chat_template"):
        Renderer(tokenizer, "tiny")


TAGS = "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{}{{% endfor %}}"
AROUND_CONTENT = "{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>\n"
AROUND_TURN = "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
ASSISTANT_ONLY = "{{% if m['role'] == 'assistant' %}}{}{{% else %}}{{{{ m['content'] }}}}<|im_end|>\n{{% endif %}}"


@pytest.mark.parametrize("tagged", [AROUND_CONTENT, AROUND_TURN])
def test_generation_tags_are_followed_and_the_end_of_turn_is_trained(tagged):
    chat = renderer(TAGS.format(ASSISTANT_ONLY.format(tagged)))
    thread = StringThread().user("u").assistant("a").user("v").assistant(" b ")
    rendering = chat.render(thread)
    assert trained_text(rendering, chat) == ["a<|im_end|>", " b <|im_end|>"]
    assert [chat.tokenizer.decode(turn.content) for turn in rendering.get_turns()] == ["a", " b "]
    other = chat.render(thread.with_turn_weights([0, 0, 1, 0]))  # a turn that has no tags: sentinels find it
    assert trained_text(other, chat) == ["v<|im_end|>"]


def test_tags_around_something_else_are_refused_when_loading():
    with pytest.raises(ModelLoadError, match=r"no thread can be rendered.* changes turn 1 \(assistant, "):
        renderer(TAGS.format(ASSISTANT_ONLY.format("{% generation %}?{% endgeneration %}{{ m['content'] }}<|im_end|>")))
