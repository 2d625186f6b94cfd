"""What is asked is, token for token, the start of what was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlft_local.base.tokenization import Renderer
from transformers import AutoTokenizer

from sqlft.errors import NotSupported
from sqlft.handler import Message

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS_THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['role'] }}: {{ m['content'] }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_OPENING = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}{{ '>' if add_generation_prompt }}"
TEXTS = ["SELECT 1", " x", "x ", "\n x \n", "", "naïve 😀 数据库", "How  many singers?  ", "<|im_end|>", "12  34"]


def user(text: str) -> Message:
    """A turn."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """An answer."""
    return Message("assistant", text)


@pytest.fixture
def renderer(tiny: Path) -> Callable[[str | None], Renderer]:
    """A renderer with a template."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)

    def make(template: str | None) -> Renderer:
        if template is None:
            tokenizer.chat_template = None
        return Renderer(tokenizer, [tokenizer.eos_token_id], template)

    return make


@pytest.mark.parametrize("template", [CHATML, LLAMA2, None])
@pytest.mark.parametrize("question", TEXTS)
@pytest.mark.parametrize("answer", TEXTS)
def test_the_prompt_is_the_start_of_what_is_trained_on(
    renderer: Callable[[str | None], Renderer], template: str | None, question: str, answer: str
) -> None:
    """One stray space would show."""
    made = renderer(template)
    asked = made.prompt([user(question)])
    trained = made.conversation([user(question), assistant(answer)])
    assert trained.ids[: len(asked)] == asked
    assert not any(trained.answer[: len(asked)])
    assert all(trained.answer[len(asked) :])
    assert trained.ids[-1] in made.stop_ids
    again = made.prompt([user(question), assistant(answer), user("And?")])
    longer = made.conversation([user(question), assistant(answer), user("And?"), assistant("No.")])
    assert longer.ids[: len(again)] == again
    assert again[: len(asked)] == asked


@pytest.mark.parametrize("template", [CHATML, LLAMA2, None])
def test_an_answer_is_read_back_as_it_was_said(
    renderer: Callable[[str | None], Renderer], template: str | None
) -> None:
    """Without what the template puts around it."""
    made = renderer(template)
    asked = made.prompt([user("How many?")])
    trained = made.conversation([user("How many?"), assistant("SELECT  count(*) FROM t")])
    assert made.text(trained.ids[len(asked) : -1]) == "SELECT  count(*) FROM t"


def test_every_assistant_turn_is_learned(renderer: Callable[[str | None], Renderer]) -> None:
    """And nothing else."""
    made = renderer(CHATML)
    turns = [Message("system", "Be brief."), user("a"), assistant("first"), user("b"), assistant("second")]
    ids, answer, _ = made.conversation(turns)
    learned = made.tokenizer.decode([i for i, a in zip(ids, answer, strict=True) if a])
    assert learned == "first<|im_end|>second<|im_end|>"


@pytest.mark.parametrize("template", [THINKING, THINKING.replace("enable_thinking is false", "false"), ALWAYS_THINKING])
def test_thoughts_of_nothing_are_neither_learned_nor_returned(
    renderer: Callable[[str | None], Renderer], template: str
) -> None:
    """Wherever a template writes them: before the last answer, in the prompt, or opened there and left open."""
    made = renderer(template)
    turns = [user("a"), assistant("first"), user("b"), assistant("second")]
    ids, answer, _ = made.conversation(turns)
    assert (
        made.tokenizer.decode([i for i, a in zip(ids, answer, strict=True) if a]) == "first<|im_end|>second<|im_end|>"
    )
    asked = made.prompt(turns[:3])
    assert ids[: len(asked)] == asked
    assert made.tokenizer.decode(asked).endswith("assistant\n<think>\n\n</think>\n\n")
    assert made.text(ids[len(asked) : -1]) == "second"
    assert made.text(made.tokenizer.encode("<think>\n</think>\n\nsecond", add_special_tokens=False)) == "second"
    thoughtful = [turns[0], assistant("<think>\nbecause\n</think>\n\nfirst"), *turns[2:]]
    assert made.conversation(thoughtful) == made.conversation(turns)


def test_an_answer_may_be_context_only(renderer: Callable[[str | None], Renderer]) -> None:
    """Also one before anything is asked."""
    made = renderer(CHATML)
    turns = [assistant("Hello!"), user("a"), assistant("WRONG"), user("b"), assistant("right")]
    ids, answer, ignored = made.conversation(turns, context=[0, 2])
    assert made.tokenizer.decode([i for i, a in zip(ids, answer, strict=True) if a]) == "right<|im_end|>"
    left = made.tokenizer.decode([i for i, a in zip(ids, ignored, strict=True) if a])
    assert "Hello!" in left
    assert left.endswith("WRONG<|im_end|>")
    asked = made.prompt(turns[:4])
    assert ids[: len(asked)] == asked


def test_a_template_that_forgets_turns_is_refused(renderer: Callable[[str | None], Renderer]) -> None:
    """With it, what is trained on would not be what is asked."""
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    with pytest.raises(NotSupported, match="chat_template"):
        renderer(FORGETFUL).conversation(turns)


def test_a_template_that_opens_no_answer_is_refused(renderer: Callable[[str | None], Renderer]) -> None:
    """The prompt must be what stands before the answer."""
    with pytest.raises(NotSupported, match="chat_template"):
        renderer(NO_OPENING).conversation([user("a"), assistant("b")])


def test_a_template_without_a_generation_prompt_is_given_one(renderer: Callable[[str | None], Renderer]) -> None:
    """What it puts before answers: else the model would have to say whose turn it is."""
    made = renderer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    asked = made.prompt([user("a")])
    assert made.tokenizer.decode(asked) == "user: a\nassistant: "
    trained = made.conversation([user("a"), assistant(" b")])
    assert trained.ids[: len(asked)] == asked
    assert made.text(trained.ids[len(asked) : -1]) == " b"


def test_a_template_that_fails_says_so(renderer: Callable[[str | None], Renderer]) -> None:
    """Jinja's own errors do not escape."""
    with pytest.raises(NotSupported, match="refuses these messages"):
        renderer("{{ raise_exception('no') }}").prompt([user("a")])
    with pytest.raises(NotSupported, match="refuses these messages"):
        renderer("{% for %}").prompt([user("a")])


def test_the_template_s_end_mark_ends_an_answer(tiny: Path) -> None:
    """Also where the base itself ends texts with another token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    made = Renderer(tokenizer, [tokenizer.convert_tokens_to_ids("<|endoftext|>")], CHATML)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in made.stop_ids
    assert made.conversation([user("a"), assistant("b")]).ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
