"""Providers and models that end: a warning before the day, a refusal from it on, nothing for a server of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from sqlft_openai import sunsets
from sqlft_openai.prices import look_up_price
from sqlft_openai.providers import PROVIDERS

import sqlft

LAST_JOBS, LAST_4O = date(2027, 1, 6), date(2027, 1, 14)
TRAIN = "FINETUNE m FROM (SELECT * FROM examples)"
Clock = Callable[[date], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the day; it begins as 2026-11-28."""

    def put(day: date) -> None:
        monkeypatch.setattr(sunsets, "today", lambda: day)

    put(date(2026, 11, 28))
    return put


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def con(warnings: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlft.Connection]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody-at-all")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    made = sqlft.connect(warn=warnings.append)
    made.execute("CREATE TABLE examples AS SELECT 'q' || i AS q, 'a' || i AS answer FROM range(60) t(i)")
    yield made
    made.close()


def create_model(con: sqlft.Connection, model: str = "gpt-4o-mini", more: str = "", engine: str = "openai") -> None:
    con.execute(
        f"CREATE OR REPLACE MODEL m PREDICT answer USING engine = '{engine}', model_name = '{model}',"
        f" prompt_template = '{{{{q}}}}'{more}"
    )


def test_no_engine_has_a_default_model_that_ends() -> None:
    for provider in PROVIDERS.values():
        if provider.default_base:
            assert sunsets.find_notice("api.openai.com", provider.default_base, training=False) is None


def test_the_price_of_the_default_model_is_known() -> None:
    openai = PROVIDERS["openai"]
    found = look_up_price(openai, openai.default_base or "")
    assert found is not None
    assert None not in (found.input, found.output, found.cached_input)


def test_a_model_that_will_end_is_made_with_a_warning(con: sqlft.Connection, warnings: list[str]) -> None:
    create_model(con)
    assert len(warnings) == 1
    assert "switches off the model 'gpt-4o-mini' and what was tuned from it on 2027-01-14, 47 days" in warnings[0]
    assert "'gpt-6-luna'" in warnings[0]


def test_a_model_that_has_ended_is_refused(con: sqlft.Connection, clock: Clock, warnings: list[str]) -> None:
    clock(LAST_4O - timedelta(days=1))
    create_model(con)
    assert "1 day from now" in warnings.pop()
    clock(LAST_4O)
    with pytest.raises(sqlft.NotSupported, match="switched off the model 'gpt-4o-mini'") as e:
        create_model(con)
    assert "model_name = 'gpt-6-luna'" in e.value.next_step
    create_model(con, "gpt-6-luna")
    assert warnings == []


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        ("gpt-4o-mini-2024-07-18", "2027-01-14"),
        ("ft:gpt-4.1-2025-04-14:my-org:reviews:Abc", "2027-01-14"),
        ("gpt-4o-2024-05-13", "2026-10-23"),
        ("gpt-3.5-turbo-0125", "2026-10-23"),
        ("gpt-4-1106-preview", "2026-10-23"),
        ("gpt-5-nano", "2026-12-11"),
        ("gpt-4o-transcribe", None),
        ("gpt-4o-search-of-mine", None),
        ("gpt-6-luna", None),
    ],
)
def test_families_snapshots_and_tuned_models(model: str, ends: str | None, clock: Clock) -> None:
    found = sunsets.find_notice("eu.api.openai.com", model, training=False)
    assert (found is None) is (ends is None)
    assert ends is None or (found is not None and ends in found.text)


def test_a_training_warns_until_its_day_and_is_refused_from_it(
    con: sqlft.Connection, clock: Clock, warnings: list[str]
) -> None:
    create_model(con)
    warnings.clear()
    con.execute(f"EXPLAIN {TRAIN}")
    [warned] = [w for w in warnings if "2027" in w]
    assert "no new fine-tuning jobs from 2027-01-06" in warned
    assert "2027-01-14" in warned, "what is tuned ends too"
    assert "engine = 'local'" in warned
    clock(LAST_JOBS)
    for statement in (TRAIN, f"EXPLAIN {TRAIN}", "RETRAIN m FROM (SELECT * FROM examples)"):
        with pytest.raises(sqlft.NotSupported, match="no new fine-tuning jobs since 2027-01-06") as e:
            con.execute(statement)
        assert "tokenfactory.nebius.com" in e.value.next_step
        assert "check = 'warn'" in e.value.next_step


@pytest.mark.parametrize("statement", [TRAIN, f"EXPLAIN {TRAIN}", "RETRAIN m FROM (SELECT * FROM examples)"])
def test_the_default_model_is_refused_before_its_rows_are_read(con: sqlft.Connection, statement: str) -> None:
    """OpenAI trains it on no day, so no version is made that could send rows."""
    con.execute("CREATE MODEL m PREDICT answer USING engine = 'openai', prompt_template = '{{q}}'")
    rows = con.execute("SELECT model, version FROM sqlft.versions").fetchall()
    with pytest.raises(sqlft.NotSupported, match="does not train 'gpt-6-luna'") as e:
        con.execute(
            statement.replace("SELECT * FROM examples", "SELECT error('these rows were read') AS q, 1 AS answer")
        )
    assert "gpt-4.1-mini" in str(e.value)
    assert "engine = 'local'" in e.value.next_step
    assert con.execute("SELECT model, version FROM sqlft.versions").fetchall() == rows


def test_creating_by_training_the_default_model_is_refused(con: sqlft.Connection) -> None:
    with pytest.raises(sqlft.NotSupported, match="does not train 'gpt-6-luna'"):
        con.execute(
            "CREATE MODEL n FROM (SELECT * FROM examples) PREDICT answer USING engine = 'openai',"
            " prompt_template = '{{q}}'"
        )
    assert con.execute("SELECT * FROM sqlft.models").fetchall() == []


@pytest.mark.parametrize(
    ("model", "trains"),
    [
        ("gpt-4.1-mini-2025-04-14", True),
        ("ft:gpt-4o-2024-08-06:my-org:reviews:Abc", True),
        ("gpt-5.4-mini", False),
        ("gpt-4.1-nano-2025-04-14", False),
    ],
)
def test_what_still_trains_before_the_day(model: str, trains: bool, clock: Clock) -> None:
    clock(LAST_JOBS - timedelta(days=1))
    found = sunsets.find_notice("api.openai.com", model, training=True)
    assert found is not None
    assert found.is_refusal is not trains
    clock(LAST_JOBS)
    found = sunsets.find_notice("api.openai.com", model, training=True)
    assert found is not None
    assert found.is_refusal


def test_a_refused_training_can_be_tried_all_the_same(con: sqlft.Connection, clock: Clock, warnings: list[str]) -> None:
    clock(LAST_JOBS)
    create_model(con)
    warnings.clear()
    con.execute(f"EXPLAIN {TRAIN} USING check = 'warn'")
    assert any("no new fine-tuning jobs since" in w for w in warnings)


def test_explain_of_a_query_warns_and_refuses(con: sqlft.Connection, clock: Clock, warnings: list[str]) -> None:
    create_model(con)
    warnings.clear()
    con.execute("EXPLAIN SELECT answer FROM m WHERE q = 'x'")
    assert any("switches off the model 'gpt-4o-mini'" in w for w in warnings)
    clock(LAST_4O)
    with pytest.raises(sqlft.NotSupported, match="switched off"):
        con.execute("EXPLAIN SELECT answer FROM m WHERE q = 'x'")


def test_a_model_made_by_training_is_told_of_once(con: sqlft.Connection, warnings: list[str]) -> None:
    con.execute(
        "EXPLAIN CREATE MODEL n FROM (SELECT * FROM examples) PREDICT answer"
        " USING engine = 'openai', model_name = 'gpt-4o', prompt_template = '{{q}}'"
    )
    assert len([w for w in warnings if "gpt-4o" in w]) == 1


def test_a_server_of_ones_own_is_left_alone(
    con: sqlft.Connection, clock: Clock, warnings: list[str], provider: Any
) -> None:
    clock(date(2030, 1, 1))
    create_model(con, more=f", base_url = '{provider.url}', api_key = '{provider.key}'")
    assert con.execute("SELECT answer FROM m WHERE q = 'hello'").fetchall() == [("A:hello",)]
    assert warnings == []


def test_the_host_counts_and_not_the_engines_name(con: sqlft.Connection, clock: Clock) -> None:
    clock(LAST_4O)
    with pytest.raises(sqlft.NotSupported, match="OpenAI switched off"):
        create_model(con, engine="openai_compatible", more=", base_url = 'https://api.openai.com/v1'")
    with pytest.raises(sqlft.NotSupported, match="Anyscale Endpoints switched off everything"):
        create_model(con, "x", engine="anyscale_endpoints", more=", base_url = 'https://api.endpoints.anyscale.com/v1'")


def test_days_that_are_promised_at_least_refuse_nothing(clock: Clock) -> None:
    for day in (date(2026, 12, 1), date(2028, 1, 1)):
        clock(day)
        found = sunsets.find_notice("mine.openai.azure.com", "gpt-4.1-mini-2025-04-14.ft-abc", training=True)
        assert found is not None
        assert not found.is_refusal
        assert "2027-04-14 at least" in found.text


def test_anyscale_wants_the_address_of_another_server(con: sqlft.Connection) -> None:
    con.execute("CREATE ML_ENGINE theirs FROM anyscale_endpoints USING api_key = 'any-key-will-do'")
    with pytest.raises(sqlft.OptionError, match="Anyscale Endpoints is gone") as e:
        create_model(con, "x", engine="theirs")
    assert "base_url" in e.value.next_step


def test_a_provider_that_has_the_model_no_more_says_since_when(clock: Clock) -> None:
    from sqlft_openai.http.address import Address
    from sqlft_openai.http.errors import error_from_status

    clock(LAST_4O)
    address = Address(PROVIDERS["openai"], ("https://api.openai.com/v1",), None, {})
    body = b'{"error": {"message": "The model does not exist", "code": "model_not_found"}}'
    found = error_from_status(404, {}, body, address, "gpt-4o-mini")
    assert "2027-01-14" in str(found)
    assert "gpt-6-luna" in str(found)
