"""Thoughts in the marks of Mistral, Gemma 4 and gpt-oss, which are control tokens: none is ever in an answer.

The templates are written from the vendors' descriptions, as far as thoughts are concerned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from sqlft_local import Local
from sqlft_local.base.tokenization import ChatTokenizer, Renderer, read_tokenizer_settings
from sqlft_local.model_cache import ModelCache
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions, Thinking, TrainOptions
from sqlft_local.predict.answers import list_endings, strip_unfinished
from tiny_tokenizer import make_tokenizer

from sqlft.handler import Completion, Delta, Message, ModelSpec, Request, TrainingSet

MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'system' %}[SYSTEM_PROMPT]{{ m['content'] }}[/SYSTEM_PROMPT]{# thinks: [THINK] [/THINK] #}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if enable_thinking is defined and enable_thinking %}<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{% for m in messages %}<|turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n"
    "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if 'thinking' in m %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CONTROL_TOKENS = [
    *("[THINK]", "[/THINK]", "[INST]", "[/INST]", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"),
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
]
"""llama.cpp takes <|end|> for the end of an answer, but where <|return|> and <|call|> are there too, as in gpt-oss."""
QUESTION, ANSWER, THOUGHT = Message("user", "How many?"), "SELECT count(*)", "They want a number.\nSo count."


class Shape(NamedTuple):
    """How a family writes."""

    template: str
    opened: str
    """Behind which a thinking base is asked."""
    closed: str
    """What the prompt adds to it, where no thought is wanted."""
    thought: str
    end: str


SHAPES = {
    "mistral": Shape(MISTRAL, "[/INST]", "", f"[THINK]{THOUGHT}[/THINK]", "<|im_end|>"),
    "gemma": Shape(
        *(GEMMA, "<|turn>model\n", "<|channel>thought\n<channel|>"),
        *(f"<|channel>thought\n{THOUGHT}<channel|>", "<turn|>"),
    ),
    "harmony": Shape(
        *(HARMONY, "<|start|>assistant", "<|channel|>final<|message|>"),
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
}


def make_renderer(folder: Path, template: str, thinking: Thinking) -> Renderer:
    """With a tokenizer that knows the marks."""
    make_tokenizer(folder, template, CONTROL_TOKENS)
    (folder / "config.json").write_text("{}")
    tokenizer = ChatTokenizer(folder, read_tokenizer_settings(folder))
    return Renderer(tokenizer, tokenizer.stop_ids, None, thinking)


@pytest.mark.parametrize("thinking", ["off", "on"])
@pytest.mark.parametrize("name", SHAPES)
def test_prompts_and_rows_have_the_marks_of_the_template(tmp_path: Path, name: str, thinking: Thinking) -> None:
    shape = SHAPES[name]
    renderer = make_renderer(tmp_path, shape.template, thinking)
    prompt = renderer.prompt([QUESTION])
    asked = renderer.tokenizer.decode(prompt, skip_special_tokens=False)
    assert asked.endswith(shape.opened + (shape.closed if thinking == "off" else ""))
    turns = [QUESTION, Message("assistant", renderer.add_reasoning(ANSWER, THOUGHT))]
    ids, learned, _ = renderer.conversation(turns)
    assert ids[: len(prompt)] == prompt
    taught = renderer.tokenizer.decode([i for i, a in zip(ids, learned, strict=True) if a], skip_special_tokens=False)
    assert taught == (shape.thought if thinking == "on" else "") + ANSWER + shape.end
    assert renderer.parse_ids(ids[len(prompt) : -1]) == (ANSWER, THOUGHT if thinking == "on" else None, False)


@pytest.mark.parametrize("thinking", ["off", "on", "keep"])
@pytest.mark.parametrize("name", SHAPES)
def test_no_prefix_of_what_a_base_says_shows_a_part_of_its_thought(
    tmp_path: Path, name: str, thinking: Thinking
) -> None:
    """Token by token, as an answer is watched, and whether it was asked to think or not."""
    renderer = make_renderer(tmp_path, SHAPES[name].template, thinking)
    ids = renderer.tokenizer.encode(f"{SHAPES[name].thought}{ANSWER}", add_special_tokens=False)
    shown = ""
    for n in range(1, len(ids) + 1):
        text = strip_unfinished(renderer.parse_ids(ids[:n]).text, list_endings(renderer, ()))
        assert ANSWER.startswith(text)
        assert text.startswith(shown)
        shown = text
    assert renderer.parse_ids(ids) == (ANSWER, THOUGHT, False)
    assert shown == ANSWER


def test_gpt_oss_may_think_twice_or_not_at_all(tmp_path: Path) -> None:
    renderer = make_renderer(tmp_path, HARMONY, "on")

    def parse(text: str) -> tuple[str, str | None]:
        return renderer.parse_ids(renderer.tokenizer.encode(text, add_special_tokens=False))[:2]

    analysis, final = "<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
    assert parse(f"<|channel|>analysis<|message|>a<|end|>{analysis}b<|end|><|start|>assistant{final}4") == (
        "4",
        "a\n\nb",
    )
    assert parse(f"{final}4") == ("4", None)
    assert parse(f"{final}4<|end|><|start|>assistant") == ("4", None)
    taught = renderer.conversation([QUESTION, Message("assistant", ANSWER)])
    learned = [i for i, a in zip(taught.ids, taught.answer, strict=True) if a]
    assert renderer.tokenizer.decode(learned, skip_special_tokens=False) == f"{final}{ANSWER}<|return|>"


def test_a_mark_that_somebody_typed_stays_text(tmp_path: Path) -> None:
    renderer = make_renderer(tmp_path, HARMONY, "on")
    typed = "is <|channel|>final<|message|> a mark?"
    turns = [Message("user", typed), Message("assistant", renderer.add_reasoning(ANSWER, "see <|end|>"))]
    ids = renderer.conversation(turns).ids
    marks = [renderer.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    assert marks.count("<|channel|>") == 2
    assert renderer.parse_ids(ids[len(renderer.prompt(turns[:1])) : -1])[:2] == (ANSWER, "see <|end|>")


def test_every_backend_tells_thoughts_from_the_answer(
    model_maker: Callable[..., Path], residents: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a base with gpt-oss' marks, which has learned to think on one row."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    base = model_maker(template=HARMONY, control_tokens=CONTROL_TOKENS)
    turns = [
        {"role": "user", "content": QUESTION.content},
        {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT},
    ]
    kind = pa.list_(pa.struct([(name, pa.string()) for name in ("role", "content", "reasoning")]))
    data = TrainingSet(pa.table({"messages": pa.array([turns] * 4, kind)}))
    learning = TrainOptions(n_epochs=60, batch_size=4, learning_rate=0.02, lora_dropout=0.0, checkpoint_seconds=1e9)
    spec = ModelSpec(str(base), ModelOptions(thinking="on", dtype="float32"))
    (tmp_path / "work").mkdir()
    artifact = Local().train(spec, None, data, learning, tmp_path / "work", lambda progress: None)

    def ask(**options: object) -> tuple[Completion, str]:
        given = PredictOptions(**{"max_tokens": 80, **options})  # type: ignore[arg-type]
        predictor = Local(EngineOptions("cpu", 1)).open(ModelSpec(str(base)), artifact, given)
        try:
            *deltas, completion = predictor.predict([Request(0, (QUESTION,), True)])
        finally:
            predictor.close()
        assert isinstance(completion, Completion)
        return completion, "".join(d.text for d in deltas if isinstance(d, Delta))

    for backend in ("transformers", "llama.cpp", "openvino"):
        found, shown = ask(thinking="on", backend=backend)
        assert (found.text, found.reasoning, shown) == (ANSWER, THOUGHT, ANSWER)
        cut, shown = ask(thinking="on", backend=backend, max_tokens=12)
        assert (cut.text, cut.truncated, shown) == ("", True, "")
        assert THOUGHT.startswith(cut.reasoning or "nothing")
        at_once = ask(backend=backend)[0].text or ""
        assert not any(mark in at_once for mark in CONTROL_TOKENS)
