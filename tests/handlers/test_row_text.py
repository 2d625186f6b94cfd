"""The text of training rows: what the base reads and learns, shown before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlft_openai
from sqlft_local import Local
from sqlft_local.base.tokenization import Renderer
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import loop, rows
from sqlft_openai.finetune.rows import format_jsonl, prepare_rows
from tiny_tokenizer import CHATML

import sqlft
from sqlft.errors import NotSupported, OptionError
from sqlft.handler import ModelSpec, RendersRows, TrainingSet
from sqlft.options import build_options

QUESTION, ANSWER = "1 + 1 =", "2"
TEXT = "<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n⟦2<|im_end|>⟧"


@pytest.fixture
def connection(tiny: Path, tmp_path: Path) -> Iterator[sqlft.Connection]:
    """With a local model `m` of two inputs."""
    with sqlft.connect(str(tmp_path / "db.duckdb")) as made:
        made.execute(
            f"CREATE MODEL m PREDICT answer USING engine = 'local', base = '{tiny}', "
            "prompt_template = '{{a}} + {{b}} ='"
        )
        yield made


def analyze(connection: sqlft.Connection, query: str, options: str = "", model: str = "m") -> list[tuple[Any, ...]]:
    """Row, tokens and text of what is shown."""
    statement = f"ANALYZE TRAINING DATA FROM ({query}) FOR {model} USING show_rows = 3{options}"
    found = connection.execute(statement).fetchall()
    return [(row[5][0], row[2], row[3]) for row in found if row[1] == "row_text"]


def test_a_row_is_shown_as_the_base_reads_it(connection: sqlft.Connection) -> None:
    query = "SELECT i AS a, i AS b, i + i AS answer FROM range(1, 6) t(i)"
    (number, tokens, text), second, third = analyze(connection, query)
    assert (number, text) == (1, TEXT)
    assert tokens > 10
    assert "2 + 2" in second[2]
    assert "⟦6<|im_end|>⟧" in third[2]
    explained = connection.execute(f"EXPLAIN FINETUNE m FROM ({query}) USING show_rows = 1").fetchall()
    assert [row for row in explained if row[0].startswith("row ")] == [("row 1", TEXT)]
    assert not [r for r in connection.execute(f"EXPLAIN FINETUNE m FROM ({query})").fetchall() if r[0][:4] == "row "]


def test_rows_have_the_numbers_of_the_query(connection: sqlft.Connection) -> None:
    query = "SELECT * FROM (VALUES (1, 1, NULL), (2, 2, 4), (NULL, NULL, 1), (1, 2, 3)) t(a, b, answer)"
    assert [number for number, *_ in analyze(connection, query)] == [2, 4]


def test_what_is_context_and_what_is_cut_is_seen(connection: sqlft.Connection) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "no, " * 60},
        {"role": "assistant", "content": "wrong ⟧", "weight": 0},
        {"role": "user", "content": "again, naïve 数据库"},
        {"role": "assistant", "content": "right"},
    ]
    connection.execute("CREATE TABLE chats (messages VARCHAR)")
    connection.execute("INSERT INTO chats VALUES (?)", [json.dumps(turns)])
    ((_, _, text),) = analyze(connection, "FROM chats")
    assert "wrong ⟧<|im_end|>\n" in text
    assert text.count("⟦") == 1
    assert text.endswith("assistant\n⟦right<|im_end|>⟧")
    ((_, tokens, text),) = analyze(connection, "FROM chats", ", max_length = 60")
    assert tokens == 60
    assert text.startswith("<|im_start|>system\nBe brief.")
    assert "tokens are cut here …]" in text
    assert text.endswith("right<|im_end|>⟧")
    ((_, tokens, text),) = analyze(connection, "FROM chats", ", prompt_loss_weight = 0.25")
    assert text.startswith("⟦×0.25 <|im_start|>system\nBe brief.")
    assert "⟧wrong ⟧<|im_end|>⟦×0.25 " in text


def test_the_shown_tokens_are_those_of_the_training(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces, encoded again and weighed, are the examples that the training loop gets."""
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int32())]))
    chats = [
        [
            ("user", f"How many {'singers ' * n}?", 1),
            ("assistant", "No", n % 2),
            ("user", "And", 1),
            ("assistant", "7", 1),
        ]
        for n in range(1, 40, 6)
    ]
    table = pa.table(
        {
            "messages": pa.array(
                [[dict(zip(("role", "content", "weight"), t, strict=True)) for t in c] for c in chats], kind
            )
        }
    )
    options = TrainOptions(max_length=48, stop=[" END"], separator=" ->")
    spec, taught = ModelSpec(str(tiny), ModelOptions()), []

    def render(table: pa.Table, renderer: Renderer, options: TrainOptions, context: int) -> rows.TrainingRows:
        taught.append((rows_before(table, renderer, options, context), renderer))
        raise InterruptedError

    rows_before = rows.render_rows
    monkeypatch.setattr(loop.rows, "render_rows", render)
    data = TrainingSet(table)
    with pytest.raises(InterruptedError):
        Local().train(spec, None, data, options, tiny, lambda progress: None)
    ((trained, renderer),) = taught
    shown = Local().render_rows(spec, None, data, options)
    assert shown is not None
    assert trained.cut > 0
    for row, example in zip(shown, trained.examples, strict=True):
        ids = [renderer.tokenizer.encode(piece.text, add_special_tokens=False) for piece in row.pieces]
        assert row.tokens == len(example.ids)
        if not any(piece.cut_tokens for piece in row.pieces):
            weights = [p.weight for p, tokens in zip(row.pieces, ids, strict=True) for _ in tokens]
            assert weights == list(example.weights)
            assert "".join(p.text for p in row.pieces) == renderer.tokenizer.decode(
                list(example.ids), skip_special_tokens=False
            )


def test_reasoning_and_typed_answers_are_shown_as_they_are_taught(
    tiny: Path, tmp_path: Path, connection: sqlft.Connection
) -> None:
    base = tmp_path / "thinker"
    shutil.copytree(tiny, base)
    (base / "chat_template.jinja").write_text(
        CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    )
    connection.execute(
        f"CREATE MODEL t PREDICT answer USING engine = 'local', base = '{base}', thinking = 'on', "
        "prompt_template = '{{q}}'"
    )
    ((_, _, text),) = analyze(connection, "SELECT '1+1' AS q, 'add' AS reasoning, '2' AS answer", "", "t")
    assert text.endswith("assistant\n<think>\n⟦add\n</think>\n\n2<|im_end|>⟧")
    connection.execute(
        f"CREATE MODEL j PREDICT (n INTEGER, s VARCHAR) USING engine = 'local', base = '{tiny}', "
        "prompt_template = '{{q}}'"
    )
    ((_, _, text),) = analyze(connection, "SELECT 'x' AS q, 1 AS n, NULL AS s", "", "j")
    assert text.endswith('⟦{"n": 1, "s": null}<|im_end|>⟧')


def test_a_version_keeps_its_first_rows_for_the_report_and_goes_on_with_its_delimiters(
    connection: sqlft.Connection, tmp_path: Path
) -> None:
    query = "SELECT 1 AS a, 1 AS b, 2 AS answer FROM range(2)"
    connection.execute(f"FINETUNE m FROM ({query}) USING n_epochs = 0.01, stop = ' END', check = 'off'")
    assert analyze(connection, query)[0][2].endswith("⟦2 END<|im_end|>⟧")
    assert analyze(connection, query, "", "m.1")[0][2].endswith("⟦2<|im_end|>⟧")
    connection.execute(f"REPORT MODEL m TO '{tmp_path}/report.html'")
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count("<mark>2 END&lt;|im_end|&gt;</mark>") == 2
    assert "&lt;|im_start|&gt;user\n1 + 1 =" in report


def test_what_cannot_be_shown_says_why(connection: sqlft.Connection, provider: Any) -> None:
    query = "SELECT 1 AS a, 1 AS b, 2 AS answer"
    with pytest.raises(OptionError, match="no model is named"):
        connection.execute(f"ANALYZE TRAINING DATA FROM ({query}) USING show_rows = 1")
    with pytest.raises(OptionError, match="between 0 and 100"):
        connection.execute(f"ANALYZE TRAINING DATA FROM ({query}) FOR m USING show_rows = -1")
    with pytest.raises(OptionError, match="show_rows"):
        connection.execute(f"FINETUNE m FROM ({query}) USING show_rows = 1")
    connection.execute(
        "CREATE MODEL far PREDICT answer USING engine = 'local', base = 'qwen3-8b', prompt_template = '{{a}}'"
    )
    with pytest.raises(NotSupported, match="sqlft pull qwen3-8b"):
        connection.execute(f"EXPLAIN FINETUNE far FROM ({query}) USING show_rows = 1")
    connection.execute("CREATE MODEL e PREDICT answer USING engine = 'echo', prompt_template = '{{a}}'")
    with pytest.raises(NotSupported):
        connection.execute(f"ANALYZE TRAINING DATA FROM ({query}) FOR e USING show_rows = 1")


@pytest.mark.parametrize("in_pairs", [False, True])
def test_hosted_rows_are_shown_as_the_lines_that_go_up(in_pairs: bool) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int32())]))
    turns = [
        {"role": "user", "content": 'say "right"', "weight": 1},
        {"role": "assistant", "content": "right", "weight": 0},
        {"role": "user", "content": "again", "weight": 1},
        {"role": "assistant", "content": "right", "weight": 1},
    ]
    table = pa.table({"messages": pa.array([turns] * 12, kind)})
    if in_pairs:
        table = table.append_column("rejected", pa.array(["wrong"] * 12))
    cls = sqlft_openai.OpenAI
    options = build_options(cls.train_options, {"method": "dpo"} if in_pairs else {}, "FINETUNE")
    handler = cls(build_options(cls.engine_options, {"api_key": "k"}, "the engine"))
    assert isinstance(handler, RendersRows)
    spec = ModelSpec("gpt-4o-mini", build_options(cls.model_options, {}, "CREATE MODEL"))
    first, *_ = handler.render_rows(spec, None, TrainingSet(table), options) or ()
    line = format_jsonl(prepare_rows(cls.provider, "gpt-4o-mini", TrainingSet(table), options).train).splitlines()[0]
    assert "".join(piece.text for piece in first.pieces) == line.decode()
    assert [json.loads(p.text) for p in first.pieces if p.weight] == [{"role": "assistant", "content": "right"}]
    assert ("wrong" in first.pieces[-1].text) == in_pairs
