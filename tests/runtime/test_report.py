"""REPORT MODEL and sqlft report: one file, nothing from outside, every text escaped, readable in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sqlft.catalog.records import ModelKey, VersionKey
from sqlft.cli import main
from sqlft.errors import CatalogError, NotFound, StatementError
from sqlft.handler import Progress
from sqlft.report.facts import VersionUsage, format_headline

pytest.importorskip("matplotlib", reason="reports need matplotlib: pip install 'sqlft[evaluation]'")
pytest.importorskip("scipy", reason="evaluations need scipy: pip install 'sqlft[evaluation]'")

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">$\\frac{"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Tags(HTMLParser):
    """Counts a page's elements and collects what they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset") and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}")


@pytest.fixture
def page(connection_with_model: Any, tmp_path: Path) -> Path:
    """The report of a model with three versions whose every text is hostile."""
    evil = EVIL.replace("'", "''")
    connection_with_model.run(f"CREATE TABLE asked AS SELECT question, answer || ' {evil}' AS answer FROM rows")
    connection_with_model.run(
        f"CREATE OR REPLACE MODEL m PREDICT answer USING engine = 'stranger', base = 'tiny {evil}', tag = '{evil}', "
        f"prompt_template = '{{{{question}}}}'"
    )
    connection_with_model.train(f"steps = 2, tag = '{evil}'", rows="SELECT * FROM asked")
    connection_with_model.train("steps = 2", what="FINETUNE m.1", rows="SELECT * FROM asked LIMIT 4")
    loss = [Progress(step, 20, {"loss": 1 / step, "valid_loss": 2 / step}) for step in range(3, 20)]
    connection_with_model.catalog.add_progress(VersionKey(ModelKey("m"), 2), loss)
    connection_with_model.run(
        "EVALUATE MODEL m.1, m.2, m.3 ON (SELECT * FROM asked) USING metrics = ['exact_match', 'token_f1']"
    )
    path = tmp_path / "report.html"
    assert connection_with_model.run(f"REPORT MODEL m TO '{path}'") == [("m", str(path))]
    return path


def test_it_has_all_its_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for words in (
        "Version 3",
        "Loss",
        "Metrics by version",
        "Differences between versions",
        "Where versions differ",
        "Cost and speed",
        "Training data",
        "It scores 1 higher than m.1",
        "validation",
    ):
        assert words in text
    assert text.count("<svg") >= 4
    assert 3 <= text.count('<article class="row"') <= 20


def test_each_row_that_differs_is_shown_once(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    numbers = re.findall(r'<div class="small grey">Row (\d+), \w+</div>', text)
    assert len(numbers) == len(set(numbers)) == 8


def test_hostile_texts_are_texts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert "&lt;script&gt;document.title" in text
    assert (tags.names.count("script"), tags.names.count("img"), tags.handlers) == (1, 0, [])


def test_it_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert Tags(text).loads == []
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_command_writes_all_models_or_one(
    page: Path, tmp_path: Path, sqlft_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, there = tmp_path / "all.html", ["--catalog", str(sqlft_home)]
    assert main(["report", *there, "-o", str(path)]) == 0
    assert main(["report", "M", *there, "-o", str(path)]) == 0
    assert "Version 3" in path.read_text(encoding="utf-8")
    assert main(["report", "mm", *there, "-o", str(path)]) == 1
    assert "Did you mean 'm'" in capsys.readouterr().err


def test_a_model_that_was_only_made_has_a_report(connection_with_model: Any, tmp_path: Path) -> None:
    connection_with_model.run(f"REPORT MODEL m TO '{tmp_path / 'bare.html'}'")
    text = (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "Not evaluated yet" in text
    assert "Not asked yet" in text


def test_what_cannot_be_reported(connection_with_model: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        connection_with_model.run("REPORT MODEL nobody")
    with pytest.raises(CatalogError, match="cannot be written"):
        connection_with_model.run(f"REPORT MODEL m TO '{tmp_path}/no/such/folder.html'")
    with pytest.raises(StatementError, match="a file's name"):
        connection_with_model.run("REPORT MODEL m TO report")


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_it_fits_the_screen_and_its_filters_work(page: Path, width: int, tmp_path: Path) -> None:
    probe = (
        "<script>addEventListener('load', () => {"
        "const find = document.querySelector('input[type=search]');"
        "find.value = 'q3'; find.dispatchEvent(new Event('input', {bubbles: true}));"
        "document.body.dataset.told = [document.title, document.documentElement.scrollWidth <= innerWidth,"
        "[...document.querySelectorAll('.row')].filter(r => !r.hidden && !r.textContent.includes('q3')).length,"
        "document.querySelector('[data-count]').textContent].join('|'); });</script>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    told = re.search(r'data-told="([^"]*)"', browse(tmp_path, f"--window-size={width},2000", "--dump-dom", str(probed)))
    assert told is not None
    title, fits, wrong, count = told[1].split("|")
    assert (title, fits, wrong) == ("m – sqlft report", "true", "0")
    assert re.fullmatch(r"[1-9]\d* of \d+ rows", count)


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_it_prints(page: Path, tmp_path: Path) -> None:
    browse(tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}", str(page))
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def browse(folder: Path, *arguments: str) -> str:
    """What headless Chromium prints."""
    *options, file = arguments
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, Path(file).as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_first_sentence_is_how_many_are_right(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "m.2: 100 % right, before 0 %. It scores 1 higher than m.1 in exact_match" in text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"metric": "accuracy", "value": 0.525, "difference": 0.525}, "m.2: 52 % right, before 0 %."),
        ({"metric": "exact_match of city", "value": 0.25, "difference": -0.5}, "m.2: 25 % right, before 75 %."),
        ({"metric": "token_f1", "value": 0.7123, "difference": 0.2}, "m.2: token_f1 0.712, before 0.512."),
    ],
)
def test_headlines(row: dict[str, Any], said: str) -> None:
    assert format_headline({"model": "m", "version": 2, **row}) == said


def test_no_dollars_where_no_price_is_known() -> None:
    spent = [
        VersionUsage(1, calls=4, cost_usd=0.0, unpriced_calls=4),
        VersionUsage(2, calls=4, cost_usd=0.5, priced_calls=3, unpriced_calls=1),
        VersionUsage(3, calls=4, cost_usd=0.5, priced_calls=4),
    ]
    assert [s.cost for s in spent] == ["–", "at least $0.50", "$0.50"]


def test_the_command_takes_the_database_alone(
    connection_with_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, path = tmp_path / "app.duckdb", tmp_path / "report.html"
    assert main([str(file), "-c", "CREATE MODEL n PREDICT a USING engine = 'echo'"]) == 0
    assert main(["report", str(file), "-o", str(path)]) == 0
    assert "n" in re.findall(r"<h1[^>]*>(.*?)</h1>", path.read_text(encoding="utf-8"))[0]
    capsys.readouterr()
    assert main(["report", "-d", str(tmp_path / "nothing.duckdb")]) == 1
    assert "There is no file" in capsys.readouterr().err
