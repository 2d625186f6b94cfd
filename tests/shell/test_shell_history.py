"""What history may keep."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sqlft.shell.prompt import RedactedMemoryHistory, history_file, open_history, redact_typed_text

STARS = "'********'"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("USING api_key = 'sk-1', base = 'b'", f"USING api_key = {STARS}, base = 'b'"),
        ("USING openai_api_key='a''b';", f"USING openai_api_key={STARS};"),
        ('USING {"api_key": "x", "base": "y"}', f'USING {{"api_key": {STARS}, "base": "y"}}'),
        ("USING api_key = $$a;b$$, n = 1", f"USING api_key = {STARS}, n = 1"),
        ("USING api_key = E'a\\'b', n = 1", f"USING api_key = {STARS}, n = 1"),
        ("USING api_key /* here */ := 'x'", f"USING api_key /* here */ := {STARS}"),
        ("USING api_key = 'a' || 'b', n = 'c'", f"USING api_key = {STARS} || {STARS}, n = 'c'"),
        ("USING api_key = bare, n = 'c'", f"USING api_key = {STARS}, n = 'c'"),
        ("USING password = 1234, n = 5", f"USING password = {STARS}, n = 5"),
        ("USING api_key = env('NAME'), n = 'c'", "USING api_key = env('NAME'), n = 'c'"),
        ("USING max_tokens = 10, prompt_template = '{{x}}'", "USING max_tokens = 10, prompt_template = '{{x}}'"),
        ("CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')", f"CREATE SECRET (TYPE s3, KEY_ID {STARS}, SECRET {STARS})"),
        ("ATTACH 'x.db' (ENCRYPTION_KEY 'k')", f"ATTACH 'x.db' (ENCRYPTION_KEY {STARS})"),
        ("ATTACH 'host=h password=p dbname=d'", "ATTACH 'host=h password=******** dbname=d'"),
        ("ATTACH 'postgresql://u:p@h/d'", "ATTACH 'postgresql://u:********@h/d'"),
        ("SET s3_secret_access_key = 'x'", f"SET s3_secret_access_key = {STARS}"),
        ("USING x = 'sk-proj-0123456789abcdef'", f"USING x = {STARS}"),
        ("SELECT api_key, 'x' FROM t WHERE i = 'y'", "SELECT api_key, 'x' FROM t WHERE i = 'y'"),
    ],
)
def test_secrets_are_starred(typed: str, kept: str) -> None:
    assert redact_typed_text(typed) == kept


def test_a_secret_in_a_text_that_never_ends_is_starred() -> None:
    assert "geheim" not in redact_typed_text("CREATE ML_ENGINE e FROM x USING api_key = 'geheim")


def test_the_file_is_its_owners_alone(sqlft_home: Path) -> None:
    history = open_history()
    history.append_string("SELECT 1;\nSELECT 2;")
    history.append_string("USING api_key = 'geheim'")
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
    assert history_file().parent == sqlft_home
    assert "geheim" not in history_file().read_text()
    assert list(open_history().load_history_strings())[1] == "SELECT 1;\nSELECT 2;"


def test_without_a_place_for_the_file_it_stays_in_memory(sqlft_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sqlft_home / "file").touch()
    monkeypatch.setenv("SQLFT_HOME", str(sqlft_home / "file"))
    history = open_history()
    assert isinstance(history, RedactedMemoryHistory)
    history.append_string("USING api_key = 'geheim'")
    assert history.get_strings() == [f"USING api_key = {STARS}"]
