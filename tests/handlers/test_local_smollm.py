"""The real base: got, loaded by anyone, trained for a minute, and better for it."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pyarrow as pa
import torch
from sqlft_local import Local
from sqlft_local.bases import bases_folder
from sqlft_local.options import PredictOptions, TrainOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqlft.data import Prompt
from sqlft.handler import Artifact, Message, ModelSpec, Request, TrainingSet
from sqlft.metrics import METRICS

DATA = Path(__file__).parents[2] / "examples" / "data" / "text_to_sql.csv"
PROMPT = Prompt("{{context}}\n{{question}}")
TRAINED_ON, ASKED = 96, 16


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
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
    out = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
    said = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert "Paris" in said
    predictor = Local().open(ModelSpec(smollm), None, PredictOptions(max_tokens=16))
    [answer] = predictor.predict([Request(1, (Message("user", asked[0]["content"]),))])
    assert answer.text == said


def test_a_minute_of_training_shows_on_tables_that_it_has_not_seen(smollm: str, tmp_path: Path) -> None:
    """Learning, not memory of the rows that were shown."""
    before = similarity(None)
    options = TrainOptions(n_epochs=1, batch_size=8, learning_rate=4e-3)
    data = TrainingSet(conversations(rows("train", TRAINED_ON)))
    made = Local().train(ModelSpec(smollm), None, data, options, tmp_path, lambda progress: None)
    after = similarity(made)
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
