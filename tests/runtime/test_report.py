"""REPORT MODEL and sqlft report: one file, nothing from outside, every text escaped, readable in a browser."""

from __future__ import annotations

import json
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
from sqlft.report import rows as judging
from sqlft.report.facts import VersionUsage, format_headline

pytest.importorskip("matplotlib", reason="reports need matplotlib: pip install 'sqlft[evaluation]'")
pytest.importorskip("scipy", reason="evaluations need scipy: pip install 'sqlft[evaluation]'")

charts = pytest.importorskip("sqlft.report.charts")
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">$\\frac{"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-headless-shell"))), None)
NODE = shutil.which("node")
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
        "Row by row",
        "Options, and what training came to",
        "Cost and speed",
        "Training data",
        "It scores 1 higher than m.1",
        "validation",
    ):
        assert words in text
    assert text.count("<svg") >= 4


def test_each_row_is_shown_once(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    numbers = re.findall(r'<div class="small grey">Row (\d+), ', text)
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
        "document.querySelector('.count').textContent].join('|'); });</script>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    told = re.search(r'data-told="([^"]*)"', browse(tmp_path, f"--window-size={width},2000", "--dump-dom", str(probed)))
    assert told is not None
    title, fits, wrong, count = told[1].split("|")
    assert (title, fits, wrong) == ("m – sqlft report", "true", "0")
    assert count == "1 of 8 rows shown: all, with “q3”."


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
    """Of the active version; the others' follow."""
    text = page.read_text(encoding="utf-8")
    assert leads(text) == ["m.3: 50 % right, before 0 %."]
    assert "m.3 against m.1 in exact_match, over 8 rows: 0 newly wrong, 4 still wrong, 4 newly right" in text
    assert "m.2: 100 % right, before 0 %. It scores 1 higher than m.1 in exact_match" in text


def leads(text: str) -> list[str]:
    return re.findall(r'<p class="lead">(.*?)</p>', text)


def reported(connection_with_model: Any, tmp_path: Path, name: str = "m") -> str:
    """The page of a model."""
    path = tmp_path / f"{name}.html"
    connection_with_model.run(f"REPORT MODEL {name} TO '{path}'")
    return path.read_text(encoding="utf-8")


@pytest.fixture
def worse(connection_with_model: Any) -> Any:
    """Version 3 has forgotten half of what version 2 had learnt, and one row neither knows."""
    connection_with_model.train()
    connection_with_model.train(what="FINETUNE m.1", rows="SELECT * FROM rows LIMIT 4")
    connection_with_model.run("CREATE TABLE held AS SELECT * FROM rows UNION ALL SELECT 'q9', 'a9'")
    connection_with_model.run("EVALUATE MODEL m.2, m.3 ON (SELECT * FROM held ORDER BY question)")
    return connection_with_model


def test_a_version_that_got_worse_says_so(worse: Any, tmp_path: Path) -> None:
    text = reported(worse, tmp_path)
    assert leads(text) == ["m.3: 44 % right, before 89 %."]
    assert "4 newly wrong, 1 still wrong, 0 newly right, 4 right before and now" in text
    kinds = re.findall(r'<article class="row" data-kind="(\w+)"', text)
    assert kinds == ["worse"] * 4 + ["still"] + ["right"] * 4, "the most telling ones first"


def test_of_many_rows_a_sample_is_shown_and_all_are_counted(
    worse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "KEPT", 2)
    text = reported(worse, tmp_path)
    assert len(re.findall("<article", text)) == 5
    for words in ("all 9<", "newly wrong 4<", "still wrong 1<", "right before and now 4<"):
        assert words in text
    assert "4 of 9 rows are answered differently by the versions" in text
    assert "In this page stand 5 of the 9 rows" in text


def test_errors_of_numbers_are_better_the_lower_they_are(connection_with_model: Any, tmp_path: Path) -> None:
    connection_with_model.run(
        "CREATE TABLE houses AS SELECT 'house ' || i AS house, i * 1000 AS price FROM range(4) t(i)"
    )
    connection_with_model.run(
        "CREATE MODEL h PREDICT price USING engine = 'stranger', base = 'tiny', prompt_template = '{{house}}'"
    )
    connection_with_model.train(what="FINETUNE h", rows="SELECT * FROM houses")
    connection_with_model.train(what="FINETUNE h", rows="SELECT house, price + 500 AS price FROM houses")
    connection_with_model.run(
        "EVALUATE MODEL h.2, h.3 ON (SELECT * FROM houses) USING metrics = ['mean_absolute_error']"
    )
    text = reported(connection_with_model, tmp_path, "h")
    assert leads(text) == ["h.3: mean_absolute_error 500, before 0 (lower is better)."]
    assert "4 worse, 0 as far off, 0 better, 0 right before and now" in text


def test_each_output_of_a_model_has_its_sentence(connection_with_model: Any, tmp_path: Path) -> None:
    connection_with_model.run(
        "CREATE MODEL two PREDICT (city VARCHAR, size VARCHAR) USING engine = 'stranger', base = 'tiny', "
        "prompt_template = '{{place}}'"
    )
    connection_with_model.run(
        "CREATE TABLE places AS FROM (VALUES ('p1', 'Rome', 'big'), ('p2', 'Oslo', 'small')) v(place, city, size)"
    )
    connection_with_model.train(what="FINETUNE two", rows="SELECT * FROM places")
    connection_with_model.run("EVALUATE MODEL two.2 ON (SELECT place, city, 'big' AS size FROM places)")
    text = reported(connection_with_model, tmp_path, "two")
    assert sorted(leads(text)) == ["two.2: 100 % right in city.", "two.2: 50 % right in size."]
    assert text.count('class="judged"') == 2


def test_without_evaluations_the_losses_are_told_and_what_to_type(connection_with_model: Any, tmp_path: Path) -> None:
    """A statement of versions that are there."""
    text = reported(connection_with_model, tmp_path)
    assert "EVALUATE MODEL m.1 ON (SELECT question, answer FROM …);" in text
    assert "No version was trained" in text
    connection_with_model.train("steps = 4")
    text = reported(connection_with_model, tmp_path)
    assert leads(text) == ["m.2: loss 1, at the end 0.25, validation loss 2, at the end 0.5."]
    assert "EVALUATE MODEL m.1, m.2 ON (SELECT question, answer FROM …);" in text
    connection_with_model.run("EVALUATE MODEL m.1, m.2 ON (SELECT * FROM rows)")
    assert "EVALUATE MODEL" not in reported(connection_with_model, tmp_path)
    connection_with_model.train("steps = 2", what="FINETUNE m.1")
    assert "The newest version is not evaluated. On rows" in (text := reported(connection_with_model, tmp_path))
    assert "EVALUATE MODEL m.1, m.3 ON" in text


def test_findings_are_told_of_each_version_that_was_trained(connection_with_model: Any, tmp_path: Path) -> None:
    connection_with_model.train()
    connection_with_model.train(
        what="FINETUNE m.1", rows="SELECT 'q' || i AS question, 'a' || i AS answer FROM range(60) t(i)"
    )
    text = reported(connection_with_model, tmp_path)
    data = text[text.index("<h3>Training data</h3>") :]
    assert re.findall(r"<h4>(.*?)</h4>", data) == ["Version 2", "Version 3"]
    assert "few rows" in data
    assert "Only 8 conversations to learn from" in data
    assert "Its rows were checked, and nothing was found in them." in data


def test_training_options_are_listed_by_version(connection_with_model: Any, tmp_path: Path) -> None:
    connection_with_model.train("steps = 2, seed = 11, max_length = 4096")
    connection_with_model.train("steps = 3, hub_token = 'hf_of_nobody'")
    cells = cells_of(reported(connection_with_model, tmp_path))
    assert ["steps", "2", "3"] in cells
    assert ["seed", "11", "0"] in cells
    assert ["max_length", "4096", "–"] in cells
    assert not any("hf_of_nobody" in text for row in cells for text in row)


def cells_of(text: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = re.findall(r"<tr>(<td.*?)</tr>", text, re.S)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.split(r"<td[^>]*>", row)[1:]] for row in rows]


def test_on_a_phone_every_cell_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<table") == text.count('<table class="cards">') > 2
    cells = re.findall(r"<td([^>]*)>", text)
    assert cells
    assert [c for c in cells if 'data-label="' not in c and 'class="text"' not in c] == []


@pytest.mark.parametrize("is_dark", [False, True])
def test_colours_can_be_read(page: Path, is_dark: bool) -> None:
    """WCAG's contrast: 4.5 for text, 3 for lines and dots, on each ground that they stand on."""
    text = page.read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", text, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light + (dark if is_dark else "")))
    for ground in ("paper", "soft", "good-soft", "bad-soft", "warn-soft"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
    for name in ("grey", "link", "good", "bad"):
        assert contrast(colours[name], colours["paper"]) >= 4.5
    for number in range(1, 8):
        assert contrast(colours[f"v{number}"], colours["paper"]) >= 3
    assert "var(--v2)" in text, "charts have the page's colours"
    assert not re.search(r"(fill|stroke): #", text)


def contrast(one: str, other: str) -> float:
    """Between 1 and 21."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_losses_after_a_tall_first_one_do_not_lie_flat() -> None:
    later = [(step, 1 - step / 200) for step in range(10, 100)]
    assert charts._is_tall([(step, 9.0 - step) for step in range(1, 5)] + later)
    assert not charts._is_tall([(1, 2.0), *later])
    assert not charts._is_tall([(1, 2.0)])


DOM = """
const fs = require("fs"), { page, script, steps } = JSON.parse(fs.readFileSync(0));
class Element {
  constructor([tag, attributes, children]) {
    Object.assign(this, { tag, attributes, hidden: false, dataset: {}, heard: {}, value: "", own: null });
    for (const [k, v] of Object.entries(attributes)) if (k.startsWith("data-")) this.dataset[k.slice(5)] = v;
    this.children = children.map(c => (typeof c === "string" ? c : new Element(c)));
  }
  get textContent() { return this.own ?? this.children.map(c => c.textContent ?? c).join(""); }
  set textContent(text) { this.own = text; }
  fits(what) {
    const classes = (this.attributes.class ?? "").split(" ");
    return what[0] === "." ? classes.includes(what.slice(1)) : this.tag === what;
  }
  querySelectorAll(what) {
    const own = this.children.filter(c => typeof c !== "string");
    return own.flatMap(c => [...(c.fits(what) ? [c] : []), ...c.querySelectorAll(what)]);
  }
  querySelector(what) { return this.querySelectorAll(what)[0]; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(name, what) { this.heard[name] = what; }
}
const document = new Element(page);
new Function("document", script)(document);
console.log(JSON.stringify([["", ""], ...steps].map(([kind, words]) => {
  const find = document.querySelector("input");
  find.value = words;
  find.heard.input();
  document.querySelectorAll("button").find(b => b.dataset.kind === kind).heard.click();
  return [
    document.querySelectorAll(".row").filter(r => !r.hidden).map(r => r.dataset.kind).join(" "),
    document.querySelector(".count").textContent,
    document.querySelectorAll("button").filter(b => b.attributes["aria-pressed"] === "true").length,
  ];
})));
"""
"""As much of a browser as the page's script needs."""


class Tree(HTMLParser):
    """The page as [tag, attributes, children]."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root: list[Any] = ["document", {}, []]
        self.open = [self.root]
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        made: list[Any] = [tag, dict(attributes), []]
        self.open[-1][2].append(made)
        if tag not in self.VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        if any(one[0] == tag for one in self.open):
            while self.open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.open[-1][2].append(data)


@pytest.mark.skipif(NODE is None, reason="no node is installed")
def test_the_filters_and_the_search_work(worse: Any, tmp_path: Path) -> None:
    text = reported(worse, tmp_path)
    script = re.findall(r"<script>(.*?)</script>", text, re.S)[0]
    steps = [("worse", ""), ("still", ""), ("better", ""), ("right", "Q2"), ("", "a9"), ("", "")]
    told = {"page": Tree(text).root, "script": script, "steps": steps}
    ran = subprocess.run([str(NODE), "-e", DOM], input=json.dumps(told), capture_output=True, text=True, check=True)
    everything = ["worse worse worse worse still right right right right", "9 of 9 rows shown: all.", 1]
    assert json.loads(ran.stdout) == [
        everything,
        ["worse worse worse worse", "4 of 9 rows shown: newly wrong.", 1],
        ["still", "1 of 9 rows shown: still wrong.", 1],
        ["", "0 of 9 rows shown: newly right.", 1],
        ["right", "1 of 9 rows shown: right before and now, with “Q2”.", 1],
        ["still", "1 of 9 rows shown: all, with “a9”.", 1],
        everything,
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"metric": "accuracy", "value": 0.525, "difference": 0.525}, "m.2: 52 % right, before 0 %."),
        ({"metric": "exact_match of city", "value": 0.25, "difference": -0.5}, "m.2: 25 % right in city, before 75 %."),
        ({"metric": "token_f1", "value": 0.7123, "difference": 0.2}, "m.2: token_f1 0.712, before 0.512."),
        ({"metric": "accuracy", "value": 0.5, "difference": None}, "m.2: 50 % right."),
        ({"metric": "rmse", "value": 2000.4, "before": 2500.0}, "m.2: rmse 2,000, before 2,500 (lower is better)."),
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
