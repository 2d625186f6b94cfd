"""An engine whose handler wraps another: which one, whose options, and that it can do what that one can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

import sqlft
from sqlft import errors, plugins
from sqlft.handler import Trainer, WrapperOptions, join_options
from sqlft.options import build_options, options_of

HANDLERS = Path(__file__).parent.parent / "handlers"


class WrappingConnection:
    """A connection with an engine `loud` of the wrapper, around the stranger's."""

    def __init__(self) -> None:
        self.con = sqlft.connect(warn=lambda _: None, catalog=os.environ["SQLFT_HOME"])
        self.run("CREATE ML_ENGINE loud FROM louder USING handler = 'Stranger', marks = 2, api_key = 'hidden'")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """A statement's rows."""
        return self.con.execute(sql).fetchall()


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[WrappingConnection]:
    monkeypatch.syspath_prepend(str(HANDLERS))
    plugins.find_entry_points.cache_clear()
    made = WrappingConnection()
    yield made
    made.con.close()
    plugins.find_entry_points.cache_clear()


def refuse(connection: WrappingConnection, sql: str, kind: type[errors.SqlftError], *words: str) -> None:
    """The statement fails with these words, and says what to do."""
    with pytest.raises(kind) as caught:
        connection.run(sql)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.next_step


def test_a_model_is_asked_and_trained_through_the_wrapper(connection: WrappingConnection) -> None:
    connection.run("CREATE TABLE rows AS SELECT 'q' || i AS question, 'a' || i AS answer FROM range(4) t(i)")
    connection.run("CREATE MODEL m PREDICT answer USING engine = 'loud', base = 'tiny', prompt_template='{{question}}'")
    connection.run("FINETUNE m FROM (SELECT * FROM rows) USING steps = 2")
    asked = "SELECT answer FROM m WHERE question = 'q1' USING prefix = 'It is '"
    assert connection.run(asked) == [("It is a1!!",)]
    described = dict(
        zip(
            [c[0] for c in connection.con.execute("DESCRIBE ML_ENGINE loud").description],
            connection.con.execute("DESCRIBE ML_ENGINE loud").fetchone() or (),
            strict=True,
        )
    )
    assert described["TRAINS"] is True
    assert any("engine option marks" in line for line in described["OPTIONS"])
    assert any("training option steps" in line for line in described["OPTIONS"])
    assert "hidden" not in str(described)
    [shown] = connection.run("SHOW HANDLERS WHERE name = 'louder'")
    assert None in shown  # whether it trains, the handler inside decides


def test_answers_are_kept_as_those_of_the_handler_inside(connection: WrappingConnection) -> None:
    """Where no option of the wrapper changes them: `marks` does, and `quiet` has others."""
    connection.run("CREATE ML_ENGINE quiet FROM louder USING handler = 'stranger'")
    digests = set()
    for engine in ("loud", "quiet"):
        connection.run(f"CREATE MODEL of_{engine} PREDICT a USING engine = '{engine}', base = 'tiny'")
        digests.add(sqlft.inference.resolve.resolve(connection.con.session, f"of_{engine}").digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("sql", "kind", "words"),
    [
        ("CREATE ML_ENGINE e FROM louder", errors.OptionError, ["'louder'", "USING handler"]),
        ("CREATE ML_ENGINE e FROM louder USING handler = 7", errors.OptionError, ["USING handler"]),
        ("CREATE ML_ENGINE e FROM louder USING handler = NULL", errors.OptionError, ["USING handler"]),
        ("CREATE ML_ENGINE e FROM louder USING handler = ''", errors.HandlerNotInstalled, ["''"]),
        ("CREATE ML_ENGINE e FROM louder USING handler = 'strangr'", errors.HandlerNotInstalled, ["'stranger'?"]),
        ("CREATE ML_ENGINE e FROM louder USING handler = 'louder'", errors.NotSupported, ["'louder'", "wraps"]),
        ("CREATE ML_ENGINE e FROM louder USING handler = 'echo', mark = 1", errors.OptionError, ["'marks'?"]),
        (
            "CREATE ML_ENGINE e FROM louder USING handler = 'stranger', api_kee = 'x'",
            errors.OptionError,
            ["'api_key'?"],
        ),
        ("CREATE ML_ENGINE e FROM louder USING handler = 'echo', marks = 4", errors.OptionError, ["between 1 and 3"]),
        ("CREATE MODEL m PREDICT a USING engine = 'louder'", errors.OptionError, ["USING handler"]),
        ("CREATE MODEL m PREDICT a USING engine = 'loud', handler = 'echo'", errors.OptionError, ["'Stranger'"]),
        ("CREATE MODEL m PREDICT a USING engine = 'loud', stepps = 2", errors.OptionError, ["'stepps'"]),
    ],
)
def test_bad_input(connection: WrappingConnection, sql: str, kind: type[errors.SqlftError], words: list[str]) -> None:
    refuse(connection, sql, kind, *words)


def test_the_class_has_the_capabilities_of_the_one_inside(connection: WrappingConnection) -> None:
    assert issubclass(plugins.load_engine_class("louder", {"handler": "stranger"}), Trainer)
    assert not issubclass(plugins.load_engine_class("louder", {"handler": "echo"}), Trainer)
    loaded = plugins.load_engine_class("louder", {"handler": "stranger"})
    assert loaded is plugins.load_engine_class("louder", {"handler": "stranger", "marks": 3})


@dataclass
class Required:
    """With an option that must be given."""

    url: Annotated[str, "where"]
    handler_name: Annotated[str, "an option of its own"] = "x"


class Annotations:
    """No dataclass."""

    size: Annotated[int, "how large"] = 3
    names: Annotated[list[str], "which"] = ["a"]


@dataclass
class Sharing:
    """With a name that the wrapper has too."""

    handler: Annotated[str, "which hand"] = "left"


def test_options_of_both_are_joined() -> None:
    required = join_options(WrapperOptions, Required)
    assert set(options_of(required)) == {"handler", "url", "handler_name"}
    with pytest.raises(errors.OptionError, match="needs the option 'url'"):
        build_options(required, {"handler": "x"}, "it")
    assert isinstance(build_options(required, {"handler": "x", "url": "u"}, "it"), Required)
    annotated = build_options(join_options(WrapperOptions, Annotations), {"handler": "x", "size": 5}, "it")
    assert isinstance(annotated, Annotations)
    assert (annotated.size, annotated.names) == (5, ["a"])
    with pytest.raises(errors.NotSupported, match="'handler'"):
        join_options(WrapperOptions, Sharing)
