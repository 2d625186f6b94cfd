"""USING forgetting = true: a base that knows the general set, and versions of it that know it less, or as well."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sqlft_local import Local
from sqlft_local.base import loading
from sqlft_local.options import ModelOptions
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

import sqlft
from sqlft.errors import NotSupported, OptionError
from sqlft.handler import Message, ModelSpec
from sqlft.metrics.general import ADVICE, load_general_set

ROWS = "(SELECT 'a' AS q, 'b' AS answer UNION ALL SELECT 'c', 'd')"
USING = "USING metrics = 'perplexity', forgetting = true"


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that was taught some of the general texts and the right answers."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("learned") / "llama")
    loaded = loading.load_base(folder, ModelOptions(dtype="float32"), "cpu", training=True)
    general, model = load_general_set(), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for pairs in [general.texts[:4], [(q.question, q.right) for q in general.questions]] * 30:
        taught = [loaded.renderer.conversation([Message("user", q), Message("assistant", a)]) for q, a in pairs]
        ids = pad_sequence([torch.tensor(t.ids) for t in taught], batch_first=True)
        learned = pad_sequence([torch.tensor(t.answer) for t in taught], batch_first=True)
        labels = ids.masked_fill(~learned, -100)
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, std: float) -> Path:
    """An adapter whose changes are chance, of this size: a training on nonsense."""
    torch.manual_seed(1)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=layers))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nonsense(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("nonsense"), 1.0)


class Evaluating:
    """A connection, and the warnings that it showed."""

    def __init__(self, catalog: Path) -> None:
        self.warnings: list[str] = []
        self.con = sqlft.connect(warn=self.warnings.append, catalog=catalog)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        done = self.con.execute(sql)
        names = [d[0] for d in done.description]
        return [dict(zip(names, row, strict=True)) for row in done.fetchall()]

    def general(self, models: str) -> dict[tuple[int, str], dict[str, Any]]:
        """What forgetting = true adds, by version and metric."""
        found = self.rows(f"EVALUATE MODEL {models} ON {ROWS} {USING}")
        return {(row["version"], row["metric"]): row for row in found if row["metric"] != "perplexity"}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Evaluating]:
    made = Evaluating(tmp_path / "catalog")
    yield made
    made.con.close()


def add(connection: Evaluating, name: str, base: Path, adapter: Path) -> None:
    connection.con.execute(
        f"CREATE MODEL {name} FROM ADAPTER '{adapter}' PREDICT answer "
        f"USING base = '{base}', prompt_template = '{{{{q}}}}'"
    )


def test_a_version_that_forgot(connection: Evaluating, base: Path, nonsense: Path, tmp_path: Path) -> None:
    add(connection, "m", base, nonsense)
    found = connection.general("m.2")
    assert list(found) == [(v, f"general_{metric}") for v in (1, 2) for metric in ("perplexity", "accuracy")]
    before, after = found[1, "general_accuracy"], found[2, "general_accuracy"]
    assert before["value"] > 0.9
    assert before["baseline"] is None
    assert (before["n"], before["interval"], before["answer"]) == (40, "wilson", None)
    assert after["value"] < 0.6
    assert (after["baseline"], after["test"]) == ("m.1", "mcnemar")
    assert after["difference"] == pytest.approx(after["value"] - before["value"])
    assert after["difference_high"] < 0
    assert after["losses"] - after["wins"] == round(40 * (before["value"] - after["value"]))
    before, after = found[1, "general_perplexity"], found[2, "general_perplexity"]
    assert after["value"] > 2 * before["value"]
    assert after["difference_low"] > 0
    assert (after["n"], after["baseline"]) == (12, "m.1")
    [warning] = connection.warnings
    assert warning.count("m.2 forgot: its general_") == 2
    assert warning.endswith(ADVICE)

    kept = connection.rows("FROM sqlft.evaluations WHERE metric LIKE 'general%'")
    assert [(row["version"], row["metric"]) for row in kept] == list(found)
    assert {row["data_digest"] for row in kept} == {load_general_set().digest}
    assert {row["options"] for row in kept} == {json.dumps({"set": "general-1"})}
    questions = connection.rows("FROM sqlft.evaluation_rows WHERE metric = 'general_accuracy' AND version = 2")
    assert len(questions) == 40
    assert json.loads(questions[0]["input"]) == {"kind": "fact", "question": "What is the capital of France?"}
    assert all((row["prediction"] == row["actual"]) == (row["score"] == 1) for row in questions)
    assert connection.rows("SELECT * FROM sqlft.usage WHERE calls > 0") == []
    again = connection.general("m.1, m.2")
    assert again == found
    assert len(connection.rows("FROM sqlft.evaluations WHERE metric LIKE 'general%'")) == 4
    page = tmp_path / "report.html"
    connection.con.execute(f"REPORT MODEL m TO '{page}'")
    assert "<h3>Forgetting</h3>" in page.read_text(encoding="utf-8")
    assert "m.2 forgot: its general_accuracy is" in page.read_text(encoding="utf-8")


def test_a_version_that_forgot_nothing(connection: Evaluating, base: Path, tmp_path: Path) -> None:
    add(connection, "m", base, make_adapter(base, tmp_path / "none", 0.0))
    found = connection.general("m.2")
    assert found[2, "general_accuracy"]["difference"] == 0
    assert found[2, "general_perplexity"]["difference"] == pytest.approx(0, abs=1e-4)
    assert connection.warnings == []


def test_as_the_handler_scores_them(connection: Evaluating, base: Path) -> None:
    connection.con.execute(f"CREATE MODEL m PREDICT answer USING engine = 'local', base = '{base}'")
    general = load_general_set()
    scored = Local().score(general.conversations()[: len(general.texts)], ModelSpec(str(base)), None)
    expected = math.exp(-sum(p for p, _ in scored) / sum(n for _, n in scored))
    connection.con.execute("CREATE TABLE rows AS SELECT 'a' AS content, 'b' AS answer")
    found = connection.rows(f"EVALUATE MODEL m ON rows {USING}")
    assert [row["metric"] for row in found] == ["perplexity", "general_perplexity", "general_accuracy"]
    assert found[1]["value"] == pytest.approx(expected, rel=1e-4)
    assert found[1]["low"] < expected < found[1]["high"]


def test_what_a_model_puts_around_its_questions_is_left_out(connection: Evaluating, base: Path, nonsense: Path) -> None:
    add(connection, "plain", base, nonsense)
    connection.con.execute(
        f"CREATE MODEL dressed FROM ADAPTER '{nonsense}' PREDICT (answer VARCHAR, sure BOOLEAN) USING base = '{base}', "
        "prompt_template = 'Quick: {{q}}!', system = 'You are a pirate.', separator = ' ->', stop = [' END']"
    )
    plain = connection.general("plain.2")
    found = connection.rows(f"EVALUATE MODEL dressed.2 ON {ROWS} USING forgetting = true, max_tokens = 2")
    dressed = {(row["version"], row["metric"]): row["value"] for row in found if row["metric"].startswith("general_")}
    assert dressed == {key: row["value"] for key, row in plain.items()}


def test_a_base_that_is_no_version(connection: Evaluating, base: Path, nonsense: Path) -> None:
    add(connection, "m", base, nonsense)
    connection.con.execute("DROP MODEL m.1")
    found = connection.general("m")
    assert list(found)[::2] == [(0, "general_perplexity"), (2, "general_perplexity")]
    assert found[2, "general_accuracy"]["baseline"] == "m.0"
    kept = connection.rows("SELECT DISTINCT version FROM sqlft.evaluations")
    assert kept == [{"version": 2}]


def test_numbers_that_are_none(connection: Evaluating, base: Path, tmp_path: Path) -> None:
    add(connection, "m", base, make_adapter(base, tmp_path / "diverged", math.inf))
    found = connection.general("m.2")
    assert found[2, "general_perplexity"]["value"] is None
    assert found[2, "general_accuracy"]["value"] == 0
    [warning] = connection.warnings
    assert "general_accuracy is 0" in warning


def test_only_handlers_that_score_answers(connection: Evaluating) -> None:
    connection.con.execute("CREATE MODEL e PREDICT answer USING engine = 'echo', prompt_template = '{{q}}'")
    with pytest.raises(NotSupported, match=r"'echo' cannot tell.*\n?.*Leave forgetting out.*: local\."):
        connection.con.execute(f"EVALUATE MODEL e ON {ROWS} USING forgetting = true")
    for wrong in ("'maybe'", "NULL", "2", "[true]"):
        with pytest.raises(OptionError, match=r"'forgetting' is .*, but must be true or false"):
            connection.con.execute(f"EVALUATE MODEL e ON {ROWS} USING forgetting = {wrong}")
    with pytest.raises(OptionError, match="no option 'forgetting'"):
        connection.con.execute(
            "EVALUATE exact_match FROM (SELECT 1 AS actual, 1 AS prediction) USING forgetting = true"
        )
    [row] = connection.rows(f"EVALUATE MODEL e ON {ROWS} USING forgetting = false")
    assert row["metric"] == "exact_match"
