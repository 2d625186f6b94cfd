"""Answers that are forgotten are those of the model that DROP CACHE names; money that is held back is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sqlft
from sqlft.errors import NotFound
from sqlft.inference.budget import hold_training_budget
from sqlft.session import SessionBudget


@pytest.fixture
def con(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A connection with models whose names look alike to LIKE."""
    monkeypatch.setenv("SQLFT_HOME", str(tmp_path))
    with sqlft.connect() as made:
        for name in ("a_b", "axb", "a", "a_b_c"):
            template = f"{name} {{{{content}}}}"  # models that are alike share what was answered
            made.execute(f"CREATE MODEL {name} PREDICT answer USING engine = 'echo', prompt_template = '{template}'")
            made.execute(f"SELECT answer FROM {name} WHERE content IN ('1', '2')").fetchall()
        yield made


@pytest.mark.parametrize("name", ["a_b", "A_B", "a_b.1"])
def test_only_the_named_model_s_answers_are_forgotten(con: Any, name: str) -> None:
    assert con.execute(f"DROP CACHE FOR {name}").fetchall() == [(2,)]
    assert con.execute("DROP CACHE FOR axb").fetchall() == [(2,)]
    assert con.execute("DROP CACHE FOR a").fetchall() == [(2,)]
    assert con.execute("DROP CACHE").fetchall() == [(2,)]


def test_what_a_training_holds_is_given_back_when_its_model_is_dropped() -> None:
    purse = SessionBudget(usd=10.0)

    def dropped() -> Any:
        raise NotFound("There is no version m.1.", "SHOW MODELS lists them.")

    with pytest.raises(ZeroDivisionError), hold_training_budget(purse, "m", "local", None, 8.0, dropped):
        raise ZeroDivisionError
    assert (purse.reserved, purse.spent) == (0.0, 0.0)
