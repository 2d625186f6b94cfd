"""The real base: got, loaded by anyone, trained for a minute, and better for it."""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from sqlft_local import Local
from sqlft_local.base.hub import bases_folder
from sqlft_local.options import PredictOptions, TrainOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqlft.data import Prompt
from sqlft.handler import Artifact, Completion, ExportRequest, Message, ModelSpec, Request, TrainingSet
from sqlft.metrics import METRICS

DATA = Path(__file__).parents[2] / "examples" / "data" / "text_to_sql.csv"
PROMPT = Prompt("{{context}}\n{{question}}")
TRAINED_ON, ASKED = 64, 8


def rows(split: str, count: int) -> list[dict[str, str]]:
    """The example's."""
    with DATA.open(encoding="utf-8") as file:
        return [r for r in csv.DictReader(file) if r["split"] == split][:count]


def conversations(some: list[dict[str, str]]) -> pa.Table:
    """As training wants them."""
    turns = [[*PROMPT.messages(r), Message("assistant", r["answer"])] for r in some]
    return pa.table({"messages": [[m._asdict() for m in t] for t in turns]})


def similarity(artifact: Artifact | None) -> float:
    """How near the answers come to the right ones, on tables that were not trained on."""
    asked = rows("dev", ASKED)
    predictor = Local().open(ModelSpec("smollm2-135m"), artifact, PredictOptions(max_tokens=48))
    answers = {c.id: c.text for c in predictor.predict([Request(i, PROMPT.messages(r)) for i, r in enumerate(asked)])}
    predictor.close()
    scores = METRICS["token_f1"](
        actual=pa.array([r["answer"] for r in asked]), prediction=pa.array([answers[i] for i in range(ASKED)])
    )
    return float(sum(scores.to_pylist()) / ASKED)


def test_a_pulled_base_is_a_folder_for_anyone(smollm: str) -> None:
    """AutoModelForCausalLM and AutoTokenizer load it; it says what it always said."""
    folder = bases_folder() / smollm
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 30
    assert tokenizer.tokenize("SELECT 12")[-3:] == ["Ġ", "1", "2"]
    text = "naïve 😀 数据库\t<|im_start|>user\n x  y\r\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, _ = likeliest(model, tokenizer, "What is the capital of France?", 8)
    assert "Paris" in tokenizer.decode(ids)


def likeliest(model: Any, tokenizer: Any, question: str, most: int) -> tuple[list[int], list[float]]:
    """transformers' greedy answer, and by how much each token's logit is above that of the next likely one."""
    asked = [{"role": "user", "content": question}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
    given = {"max_new_tokens": most, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    out = model.generate(torch.tensor([ids]), **given)
    best = [scores[0].float().topk(2).values for scores in out.scores]
    return out.sequences[0, len(ids) :].tolist(), [float(one - other) for one, other in best]


CLEAR = 1.0
"""A token is far from a tie when float32 finds it e times as likely as any other."""
QUESTIONS = [
    "What is the capital of Japan?",
    "Who was the first president of the United States?",
    "What is the opposite of hot?",
    "What is the largest planet in our solar system?",
    "Write a Python function that adds two numbers.",
]


@cache
def clear_answers(folder: Path) -> list[str]:
    """What float32 says to QUESTIONS, each up to the first token that is not far from a tie."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found, tokens = [], 0
    for question in QUESTIONS:
        ids, gaps = likeliest(model, tokenizer, question, 16)
        count = next((i for i, gap in enumerate(gaps) if gap < CLEAR), len(gaps))
        found.append(tokenizer.decode(ids[:count], skip_special_tokens=True))
        tokens += count
    assert tokens >= 30
    return found


def answers(smollm: str, **options: Any) -> list[str]:
    """The base's answers to QUESTIONS."""
    predictor = Local().open(ModelSpec(smollm), None, PredictOptions(max_tokens=16, **options))
    asked = [Request(i, (Message("user", q),)) for i, q in enumerate(QUESTIONS)]
    said = {c.id: c.text or "" for c in predictor.predict(asked) if isinstance(c, Completion)}
    predictor.close()
    return [said[i] for i in range(len(QUESTIONS))]


def test_auto_says_what_float32_says_far_from_a_tie(smollm: str, processor: str) -> None:
    """On every kind of processor, whatever `auto` takes there."""
    for said, clear in zip(answers(smollm), clear_answers(bases_folder() / smollm), strict=True):
        assert said.startswith(clear)


def test_its_gguf_file_answers_texts_by_itself(smollm: str, tmp_path: Path) -> None:
    """llama.cpp tokenizes and renders by the file alone, or renders as Ollama would."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    handler, spec = Local(), ModelSpec(smollm)
    file = ExportRequest("base-1", "gguf", "f16")
    handler.export(spec, None, file, tmp_path, lambda what, share: None)
    for request in (file, file._replace(format="ollama")):
        predictor = handler.open_to_compare(spec, None, request, tmp_path, PredictOptions(max_tokens=8))
        asked = [Request(i, (Message("user", q),)) for i, q in enumerate(QUESTIONS[:2])]
        found = {c.id: c.text or "" for c in predictor.predict(asked) if isinstance(c, Completion)}
        predictor.close()
        for i, text in found.items():
            clear = clear_answers(bases_folder() / smollm)[i]
            assert len(text) > 8
            assert text.startswith(clear) or clear.startswith(text)


@cache
def train(base: str, work: Path) -> Artifact:
    """A training of a minute, once for all ways of asking."""
    options = TrainOptions(n_epochs=1, batch_size=8, learning_rate=4e-3)
    data = TrainingSet(conversations(rows("train", TRAINED_ON)))
    work.mkdir()
    return Local().train(ModelSpec(base), None, data, options, work, lambda progress: None)


@pytest.mark.parametrize("processor", ["with OpenVINO", "bfloat16"], indirect=True)
def test_a_minute_of_training_shows_on_tables_that_it_has_not_seen(
    smollm: str, processor: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Learning, not memory of the rows that were shown."""
    made = train(smollm, tmp_path_factory.getbasetemp() / "tuned smollm")
    before, after = similarity(None), similarity(made)
    assert before < 0.5
    assert after > before + 0.3
    assert made.details["examples"] == TRAINED_ON


def test_the_example_s_splits_share_no_table() -> None:
    """What is judged was not learned."""
    train, dev = rows("train", 1000), rows("dev", 1000)
    assert len(train) + len(dev) <= 300
    assert not {r["context"] for r in train} & {r["context"] for r in dev}
    assert not {r["question"] for r in train} & {r["question"] for r in dev}
    assert os.path.getsize(DATA) < 100_000
