"""`sqlft doctor`: it tells, fast and whatever is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sqlft import plugins
from sqlft.cli import main
from sqlft.report import doctor


def test_it_tells_of_machine_packages_and_bases(capsys: pytest.CaptureFixture[str], sqlft_home: Any) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("DuckDB", "cores", "free disk", str(sqlft_home), "torch", "codellama-34b", "training", "Advice"):
        assert word in said, word


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"software", "machine", "folders", "handlers", "extras", "bases", "advice"}
    assert found["machine"]["cores"] >= 1
    assert "local" in found["extras"]
    assert {"base", "weights", "here", "training", "asking", "rows"} == set(found["bases"][0])


def test_it_loads_no_model_library() -> None:
    check = (
        "import sys; from sqlft.cli import main; main(['doctor']); "
        "assert not {'torch', 'transformers', 'openai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_what_is_broken_keeps_nothing_from_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("no luck")

    monkeypatch.setattr(plugins, "load_handler_class", broken)
    found = doctor.run_checkup()
    assert found["machine"] == {"error": "RuntimeError: no luck"}
    assert "RuntimeError: no luck" in doctor.format_checkup(found)
    assert found["software"]["sqlft"]


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["nowhere-to-be-found>=1; extra == 'local'", "duckdb>=1"])
    found = doctor.run_checkup()
    assert found["extras"] == {"local": {"installed": {}, "missing": ["nowhere-to-be-found"]}}
    assert any("pip install 'sqlft[local]' brings nowhere-to-be-found" in line for line in found["advice"])
