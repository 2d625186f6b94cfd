"""Bases that think: asked to, or not; what they think is learned, and is no part of an answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.base.tokenization import NO_DELIMITERS, ChatTokenizer, Delimiters, Renderer, read_tokenizer_settings
from sqlft_local.model_cache import ModelCache
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions, Thinking, TrainOptions
from tiny_tokenizer import CHATML

from sqlft.errors import NotSupported
from sqlft.handler import Artifact, Completion, Delta, Message, ModelSpec, Request, TrainingSet

QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Thinks unless it is told not to."""
QWEN3_5 = QWEN3.replace(
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n",
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n",
)
"""Thinks only where it is told to, and opens the thought."""
ALWAYS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
CLOSED = "<think>\n\n</think>\n\n"
QUESTION, ANSWER = Message("user", "How many?"), "SELECT count(*)"
THOUGHT = "They want a number.\nSo count."


@pytest.fixture
def render(tiny: Path) -> Callable[..., Renderer]:
    """A renderer of a template."""

    def make(template: str | None, thinking: Thinking, delimiters: Delimiters = NO_DELIMITERS) -> Renderer:
        tokenizer = ChatTokenizer(tiny, read_tokenizer_settings(tiny))
        return Renderer(tokenizer, tokenizer.stop_ids, template, thinking).with_delimiters(delimiters)

    return make


def read_taught(renderer: Renderer, turns: list[Message]) -> str:
    """What is learned of a conversation."""
    ids, answer, _ = renderer.conversation(turns)
    return renderer.tokenizer.decode([i for i, a in zip(ids, answer, strict=True) if a], skip_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "thinking", "opening"),
    [
        (QWEN3, "off", CLOSED), (QWEN3, "on", ""), (QWEN3, "keep", ""),
        (QWEN3_5, "off", CLOSED), (QWEN3_5, "on", "<think>\n"), (QWEN3_5, "keep", CLOSED),
        (ALWAYS, "off", CLOSED), (ALWAYS, "on", "<think>\n"), (ALWAYS, "keep", "<think>\n"),
        (None, "off", ""), (None, "keep", ""),
    ],
)  # fmt: skip
def test_the_prompt_opens_a_thought_as_the_template_does(
    render: Callable[..., Renderer], template: str | None, thinking: Thinking, opening: str
) -> None:
    renderer = render(template, thinking)
    prompt = renderer.prompt([QUESTION])
    assert renderer.tokenizer.decode(prompt, skip_special_tokens=False).endswith(f"<|im_start|>assistant\n{opening}")
    turns = [QUESTION, Message("assistant", renderer.add_reasoning(ANSWER, THOUGHT))]
    trained = renderer.conversation(turns)
    assert trained.ids[: len(prompt)] == prompt
    assert not any(trained.answer[: len(prompt)])
    taught = f"{opening}{read_taught(renderer, turns)}"
    thinks = template is not None and opening != CLOSED
    assert (
        taught.removeprefix(CLOSED) == (f"<think>\n{THOUGHT}\n</think>\n\n" if thinks else "") + f"{ANSWER}<|im_end|>"
    )
    answer = renderer.parse_ids(trained.ids[len(prompt) : -1])
    assert answer == (ANSWER, THOUGHT if thinks else None, False)


@pytest.mark.parametrize("template", [QWEN3, QWEN3_5, ALWAYS])
def test_later_turns_leave_thoughts_as_they_were_taught(render: Callable[..., Renderer], template: str) -> None:
    renderer = render(template, "on")
    turns = [QUESTION, Message("assistant", renderer.add_reasoning(ANSWER, THOUGHT)), QUESTION]
    prompt = renderer.prompt(turns)
    assert renderer.conversation([*turns, Message("assistant", "x")]).ids[: len(prompt)] == prompt
    assert THOUGHT in renderer.tokenizer.decode(prompt)


@pytest.mark.parametrize("template", [QWEN3, QWEN3_5])
def test_a_row_without_reasoning_teaches_to_answer_at_once(render: Callable[..., Renderer], template: str) -> None:
    taught = read_taught(render(template, "on"), [QUESTION, Message("assistant", ANSWER)])
    assert taught == ("" if template == QWEN3 else "\n</think>\n\n") + f"{ANSWER}<|im_end|>"


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_an_answer_that_only_looks_like_a_thought_is_taught_as_it_is(
    render: Callable[..., Renderer], thinking: Thinking
) -> None:
    assert read_taught(render(QWEN3, thinking), [QUESTION, Message("assistant", "<think> a")]) == "<think> a<|im_end|>"


def test_a_stop_sequence_ends_no_thought(render: Callable[..., Renderer]) -> None:
    renderer = render(QWEN3, "on", Delimiters(stop=("\n",)))
    assert renderer.parse_text(f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}\nmore", ["\n"]) == (ANSWER, THOUGHT, True)
    assert renderer.parse_text(f"<think>\n{THOUGHT}", ["\n"]) == ("", THOUGHT, False)
    turns = [QUESTION, Message("assistant", renderer.add_reasoning(ANSWER, THOUGHT))]
    assert read_taught(renderer, turns) == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}\n<|im_end|>"


def test_a_template_without_thinking_says_so(render: Callable[..., Renderer], tiny: Path) -> None:
    with pytest.raises(NotSupported, match="no thinking"):
        render(None, "on")
    with pytest.raises(NotSupported, match="no thinking"):
        render(QWEN3.replace("enable_thinking is false", "true"), "on")
    for backend in ("transformers", "llama.cpp", "openvino"):
        options = PredictOptions(thinking="on", backend=backend)  # type: ignore[arg-type]
        with pytest.raises(NotSupported, match="no thinking") as refused:
            Local().open(ModelSpec(str(tiny)), None, options)
        assert "thinking = 'on'" in str(refused.value)


class TaughtModel(NamedTuple):
    """A base and a version that learned to think."""

    base: Path
    artifact: Artifact

    def ask(self, stream: bool = False, **options: object) -> tuple[Completion, str]:
        """Its answer, and what was shown of it on the way."""
        given = PredictOptions(**{"max_tokens": 60, **options})  # type: ignore[arg-type]
        predictor = Local(EngineOptions("cpu", 1)).open(ModelSpec(str(self.base)), self.artifact, given)
        try:
            *deltas, completion = predictor.predict([Request(0, (QUESTION,), stream)])
        finally:
            predictor.close()
        assert isinstance(completion, Completion)
        return completion, "".join(d.text for d in deltas if isinstance(d, Delta))


@pytest.fixture(scope="module")
def bases_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where converted files go."""
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(autouse=True)
def _own_bases(residents: ModelCache, bases_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLFT_BASES", str(bases_folder))


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> TaughtModel:
    """Trained on one row, until it knows it."""
    folder = tmp_path_factory.mktemp("thinking")
    base = folder / "base"
    shutil.copytree(tiny, base)
    (base / "chat_template.jinja").write_text(QWEN3)
    turns = [
        {"role": "user", "content": QUESTION.content},
        {"role": "assistant", "content": ANSWER, "reasoning": THOUGHT},
    ]
    kind = pa.list_(pa.struct([(name, pa.string()) for name in ("role", "content", "reasoning")]))
    data = TrainingSet(pa.table({"messages": pa.array([turns] * 4, kind)}))
    options = TrainOptions(n_epochs=60, batch_size=4, learning_rate=0.02, lora_dropout=0.0, checkpoint_seconds=1e9)
    spec = ModelSpec(str(base), ModelOptions(thinking="on", dtype="float32"))
    workdir = folder / "work"
    workdir.mkdir()
    return TaughtModel(base, Local().train(spec, None, data, options, workdir, lambda progress: None))


BACKENDS = ["transformers", "llama.cpp", "openvino"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_thought_is_beside_the_answer(taught: TaughtModel, backend: str) -> None:
    found, shown = taught.ask(stream=True, backend=backend, thinking="on")
    assert (found.text, found.reasoning, found.truncated) == (ANSWER, THOUGHT, False)
    assert shown == ANSWER
    assert taught.ask(backend=backend, thinking="keep")[0].reasoning == THOUGHT


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_cut_off_in_its_thought_is_empty(taught: TaughtModel, backend: str) -> None:
    found, shown = taught.ask(stream=True, backend=backend, thinking="on", max_tokens=12)
    assert (found.text, found.truncated, found.output_tokens, shown) == ("", True, 12, "")
    assert found.reasoning
    assert THOUGHT.startswith(found.reasoning)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stop_text_is_looked_for_behind_the_thought(taught: TaughtModel, backend: str) -> None:
    found, shown = taught.ask(stream=True, backend=backend, thinking="on", stop=["count", "\n"])
    assert (found.text, found.reasoning, found.truncated, shown) == ("SELECT ", THOUGHT, False, "SELECT ")
    assert found.output_tokens


@pytest.mark.parametrize("backend", BACKENDS)
def test_off_asks_for_no_thought(taught: TaughtModel, backend: str) -> None:
    found, _ = taught.ask(backend=backend)
    assert "<think>" not in (found.text or "")
    assert found.input_tokens == len(loading.load_renderer(taught.base, None, "off").prompt([QUESTION]))


def test_a_base_is_loaded_once_for_all(taught: TaughtModel, residents: ModelCache) -> None:
    taught.ask(backend="transformers", thinking="on")
    known = set(residents._entries)
    taught.ask(backend="transformers")
    assert set(residents._entries) == known


def test_bound_answers_are_not_thought_about(taught: TaughtModel) -> None:
    with pytest.raises(NotSupported, match="no room for thoughts"):
        taught.ask(thinking="on", grammar='root ::= "a"')
