"""What is asked, and the answer behind it, is id by id what was trained on: from SQL's rows to the model's tokens."""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlft_local import Local
from sqlft_local.base import tokenization, weight_cache
from sqlft_local.base.tokenization import Delimiters, Renderer
from sqlft_local.model_cache import ModelCache
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions, TrainOptions
from sqlft_local.predict import llama
from sqlft_local.predict.common import encode_request
from sqlft_local.train import rows

from sqlft.data import Prompt, prepare
from sqlft.errors import NotSupported
from sqlft.handler import Artifact, Completion, Message, ModelSpec, Predictor, Request, TrainingSet

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_A_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'system' %}<<SYS>>\n{{ m['content'] }}\n<</SYS>>\n\n"
    "{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "a system message of its own": WITH_A_SYSTEM, "inst": INST, "none": None}
PROMPTS = ["{{question}}", " {{question}} \n", "Q: {{question}}\nA:", "{{ question }}  {{question}}\n\n###\n\n"]
SYSTEMS = [None, "", "Be brief.", " \nSay SQL. é😀 \n"]
MARKS = [
    Delimiters(),
    Delimiters("\n\n###\n\n", (" END", "\n")),
    Delimiters("->", ("\n",)),
    Delimiters(stop=("<|im_end|>",)),
]
TEXTS = [
    "SELECT 1", " x", "x ", "\n x \n", "naïve 😀 数据库", "How  many singers?  ", "12  34", "\t", "x END", "a\n\nb\n",
    "café", "<|im_end|>", "[INST] x [/INST]", "{{question}}", "{% if %}", "Z\u0301\u200d", "\r\n", "a\u00a0b",
]  # fmt: skip
CASES = 60
"""Rows tried with each template and each delimiters: texts, prompt_templates and systems by chance, always the same."""


@pytest.fixture(autouse=True)
def _own_bases(
    residents: ModelCache, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted files go below the tests' folder."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


@pytest.fixture(params=["transformers", "llama.cpp"])
def tokenizer(request: pytest.FixtureRequest, tiny: Path) -> Any:
    """What either backend renders with."""
    if request.param == "transformers":
        return tokenization.load_transformers_tokenizer(tiny)[0]
    return tokenization.ChatTokenizer(
        weight_cache.prepare_gguf_files(tiny, None, "f32", False, lambda what, share: None).home
    )


def make_renderer(tokenizer: Any, template: str | None, delimiters: Delimiters) -> Renderer:
    """A renderer; a template of None is that of bases that were never taught a chat."""
    tokenizer.chat_template = None
    return Renderer(tokenizer, [tokenizer.eos_token_id], template).with_delimiters(delimiters)


def in_one_shape(prompt: Prompt, shape: str, question: str, answer: str) -> pa.Table:
    """A training row as a user's query may give it."""
    whole = prompt.messages({"question": question})
    turns = [*whole, Message("assistant", answer)]
    if shape == "inputs":
        return pa.table({"question": [question], "answer": [answer]})
    if shape == "prompt, completion":
        return pa.table({"prompt": [whole[-1].content], "completion": [answer]})
    if shape == "role, content":
        return pa.table({"role": [t.role for t in turns], "content": [t.content for t in turns]})
    return pa.table({"messages": [json.dumps([t._asdict() for t in turns])]})


def cases() -> Iterator[tuple[Prompt, str, str, str]]:
    """(prompt, shape, question, answer) by chance."""
    chance = random.Random(4)
    shapes = ["inputs", "prompt, completion", "role, content", "messages"]
    for _ in range(CASES):
        question = chance.choice(TEXTS) + chance.choice(["", *TEXTS])
        answer = chance.choice(TEXTS) + chance.choice(["", *TEXTS])
        if not question.strip() or not answer.strip():
            continue  # such rows are left out of the training
        yield Prompt(chance.choice(PROMPTS), chance.choice(SYSTEMS)), chance.choice(shapes), question, answer


@pytest.mark.parametrize("delimiters", MARKS, ids=str)
@pytest.mark.parametrize("template", TEMPLATES)
def test_training_sees_the_prompt_that_is_asked_and_the_answer_behind_it(
    tokenizer: Any, template: str, delimiters: Delimiters
) -> None:
    """Id by id, and the text that they stand for is the template's own, so that no space is lost or put in."""
    if template == "inst" and delimiters.stop == ("\n",):
        pytest.skip("the template takes it off; see below")
    renderer = make_renderer(tokenizer, TEMPLATES[template], delimiters)
    for prompt, shape, question, answer in cases():
        data = prepare(in_one_shape(prompt, shape, question, answer), prompt, "answer", thorough=False)
        [trained] = rows.render_rows(data.training_set.train, renderer, TrainOptions(), 4096).examples
        asked = asked_ids(renderer, prompt, question)
        assert list(trained.ids[: len(asked)]) == asked
        assert not any(trained.weights[: len(asked)])
        assert all(trained.weights[len(asked) :])
        messages = [*prompt.messages({"question": question}), Message("assistant", answer)]
        end = delimiters.stop[0] if delimiters.stop and not answer.endswith(delimiters.stop[0]) else ""
        between = "" if messages[-2].content.endswith(delimiters.separator) else delimiters.separator
        messages[-2:] = [
            messages[-2]._replace(content=messages[-2].content + between),
            messages[-1]._replace(content=answer + end),
        ]
        theirs = renderer._render(messages, False)
        ours = tokenizer.decode(list(trained.ids), skip_special_tokens=False)
        said = tokenizer.decode(list(trained.ids[len(asked) :]), skip_special_tokens=False)
        assert ours.removesuffix("<|im_end|>") in (theirs.removesuffix("\n").removesuffix("<|im_end|>"), theirs)
        assert said == ours[len(tokenizer.decode(asked, skip_special_tokens=False)) :]


def asked_ids(renderer: Renderer, prompt: Prompt, question: str) -> list[int]:
    """The prompt as a predictor gives it to its model."""
    found = encode_request(Request(1, prompt.messages({"question": question})), renderer, 4096, 16)
    assert not isinstance(found, Completion)
    return found[0]


@pytest.mark.parametrize("where", ["question", "answer", "system", "prompt_template", "separator", "stop"])
def test_one_stray_space_would_show(tiny: Path, where: str) -> None:
    """In any of the places where one gets in."""
    tokenizer = tokenization.load_transformers_tokenizer(tiny)[0]

    def ids(stray: Mapping[str, str]) -> list[int]:
        text = {"question": "How many?", "answer": "SELECT 1", "system": "Say SQL.", "prompt_template": "{{question}}"}
        text |= {"separator": "->", "stop": " END"}
        text |= {name: text[name] + more for name, more in stray.items()}
        renderer = make_renderer(tokenizer, CHATML, Delimiters(text["separator"], (text["stop"],)))
        prompt = Prompt(text["prompt_template"], text["system"])
        turns = [*prompt.messages(text), Message("assistant", text["answer"])]
        return renderer.conversation(turns).ids

    assert ids({where: " "}) != ids({})


@pytest.mark.parametrize("delimiters", MARKS, ids=str)
@pytest.mark.parametrize("template", [CHATML, None])
def test_an_answer_is_read_back_without_its_marks(tokenizer: Any, template: str | None, delimiters: Delimiters) -> None:
    """With the stop sequences that it was trained with."""
    renderer = make_renderer(tokenizer, template, delimiters)
    for answer in ("SELECT 1", " x", "naïve 😀 数据库", "x "):
        ask = [Message("user", "a")]
        ids = renderer.conversation([*ask, Message("assistant", answer)]).ids[len(renderer.prompt(ask)) : -1]
        assert renderer.parse_ids(ids, delimiters.stop).text == answer


def test_earlier_answers_of_a_conversation_keep_their_marks(tiny: Path) -> None:
    """They stood there in training, and so they do when a follow-up is asked."""
    renderer = make_renderer(tokenization.load_transformers_tokenizer(tiny)[0], CHATML, MARKS[1])
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    asked = renderer.prompt(turns)
    assert renderer.conversation([*turns, Message("assistant", "d")]).ids[: len(asked)] == asked
    text = renderer.tokenizer.decode(asked)
    assert text.count("###") == 2
    assert text.count(" END") == 1


def test_a_stop_that_the_template_takes_off_is_refused(tiny: Path) -> None:
    """The model would never learn to say it."""
    with pytest.raises(NotSupported, match="takes the stop sequence"):
        make_renderer(tokenization.load_transformers_tokenizer(tiny)[0], INST, Delimiters(stop=("\n",)))


def test_llama_cpp_reads_every_piece_as_the_same_tokens(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own tokenizer, in the file that was made for it."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    files = weight_cache.prepare_gguf_files(tiny, None, "f32", False, lambda what, share: None)
    renderer = make_renderer(tokenization.ChatTokenizer(files.home), CHATML, MARKS[1])
    monkeypatch.setattr(llama.secrets, "token_hex", lambda n: "key")
    server = llama._start_server(llama.LlamaSettings(files.model, 1, 1, context=256), "key")
    for text in TEXTS:
        turns = [Message("system", text), Message("user", text), Message("assistant", text)]
        for piece, _ in renderer._render_pieces(turns, False):
            parts = piece.split(tokenization.GUARD)  # what somebody typed like a control token is two parts
            read = [i for part in parts if part for i in tokenize(server.listening_address, part)]
            assert read == renderer._encode(piece)
    del server


def tokenize(address: str, text: str) -> list[int]:
    """By the server's own tokenizer."""
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/tokenize", body, headers), timeout=60) as said:
        found: list[int] = json.load(said)["tokens"]
    return found


PAIRS = [("How many?", "SELECT count(*)"), ("Which?", " SELECT name "), ("Why?", "naïve 😀"), ("Who?", "12  34")]
"""Few enough for a model of two layers to learn by heart."""


@pytest.fixture(scope="module")
def learned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An adapter that knows the pairs, trained with delimiters."""
    turns = [[Message("user", q)._asdict(), Message("assistant", a)._asdict()] for q, a in PAIRS]
    data = TrainingSet(pa.table({"messages": turns}))
    options = TrainOptions(
        n_epochs=150, batch_size=4, learning_rate=0.03, separator=" ->", stop=[" END"], target_modules=["all-linear"]
    )
    workdir = tmp_path_factory.mktemp("learned")
    handler = Local(EngineOptions(threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQLFT_BASES", str(workdir / "bases"))
        return handler.train(ModelSpec(str(tiny)), None, data, options, workdir, lambda progress: None)


def answers(predictor: Predictor, questions: Sequence[str]) -> list[str | None]:
    """In the order of the questions."""
    asked = [Request(i, (Message("user", q),)) for i, q in enumerate(questions)]
    try:
        found = {c.id: c for c in predictor.predict(asked) if isinstance(c, Completion)}
    finally:
        predictor.close()
    assert [c.error for c in found.values()] == [None] * len(asked)
    return [found[i].text for i in range(len(asked))]


@pytest.mark.parametrize("backend", ["transformers", "llama.cpp", "openvino"])
def test_a_version_remembers_what_it_was_trained_with(tiny: Path, learned: Artifact, backend: str) -> None:
    """It answers without its stop sequence, whether or not the query names others."""
    if package := {"llama.cpp": "xllamacpp", "openvino": "openvino_genai"}.get(backend):
        pytest.importorskip(package, reason=f"{package} is not installed")
    precision = "auto" if backend == "openvino" else "f32"
    assert learned.details["separator"] == " ->"
    assert learned.details["stop"] == [" END"]
    for stop in (None, ["nowhere"]):
        options = PredictOptions(max_tokens=24, backend=backend, precision=precision, stop=stop)  # type: ignore[arg-type]
        predictor = Local().open(ModelSpec(str(tiny)), learned, options)
        assert answers(predictor, [q for q, _ in PAIRS]) == [a for _, a in PAIRS]


def test_without_the_marks_it_is_another_model(tiny: Path, learned: Artifact) -> None:
    """So the test above would find them missing."""
    bare = Artifact(learned.path)
    predictor = Local().open(ModelSpec(str(tiny)), bare, PredictOptions(max_tokens=24, backend="transformers"))
    assert answers(predictor, [q for q, _ in PAIRS]) != [a for _, a in PAIRS]


def test_what_is_trained_from_it_keeps_its_marks(tiny: Path, learned: Artifact, tmp_path: Path) -> None:
    """Unless others are given; the model's own come last."""
    data = TrainingSet(
        pa.table({"messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]})
    )
    model = ModelSpec(str(tiny), ModelOptions(separator="|", stop=["!"]))

    def delimiters(name: str, start: Artifact | None, **given: Any) -> tuple[Any, Any]:
        (tmp_path / name).mkdir()
        options = TrainOptions(n_epochs=1, target_modules=["all-linear"], **given)
        made = Local().train(model, start, data, options, tmp_path / name, lambda progress: None)
        return made.details["separator"], made.details["stop"]

    assert delimiters("kept", learned) == (" ->", [" END"])
    assert delimiters("given", learned, stop=["@"]) == (" ->", ["@"])
    assert delimiters("model", None) == ("|", ["!"])
    assert delimiters("none", None, separator="", stop=[]) == (None, None)
