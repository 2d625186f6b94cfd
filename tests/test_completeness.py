"""Every statement, metric and handler has all its pieces; a failure names the ones that are missing.

A statement's page is its class's name in snake case: CreateModel is docs/statements/create_model.md.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sqlft import metrics, plugins
from sqlft.sql import statements
from sqlft.sql.parser import STATEMENTS
from sqlft.statements.run import RUNNERS

ROOT = Path(__file__).parent.parent
FIXTURES = "tests/sql/parse"
PAGES = {"Plain": "select"}
"""Pages that are not called like their statement."""
NOT_IN_A_TABLE = {"Plain"}
"""Whatever no parser takes is Plain, which the connection plans and runs."""


def kinds() -> list[str]:
    """The names of all statement classes."""
    found = [k for k in vars(statements).values() if isinstance(k, type) and issubclass(k, statements.Statement)]
    return sorted(k.__name__ for k in found if not k.__subclasses__())


def snake_case(name: str) -> str:
    """CreateModel: create_model."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def without_page(path: str, word: str) -> list[str]:
    """What is wrong with a page that must be there and say the word."""
    page = ROOT / path
    if not page.exists():
        return [f"the page {path}"]
    return [] if word.lower() in page.read_text(encoding="utf-8").lower() else [f"a word about {word} in {path}"]


def missing_of_statement(kind: str) -> list[str]:
    """The pieces that a statement lacks."""
    missing = []
    if kind not in NOT_IN_A_TABLE | {k.__name__ for _, k in STATEMENTS.values()}:
        missing.append("a line in STATEMENTS of sqlft/sql/parser.py")
    if kind not in NOT_IN_A_TABLE | {k.__name__ for k in RUNNERS}:
        missing.append("a line in RUNNERS of sqlft/statements/run.py")
    expected = "".join(f.read_text(encoding="utf-8") for f in sorted((ROOT / FIXTURES).glob("*.sql")))
    if not re.search(rf"^--> {kind}\(", expected, re.MULTILINE):
        missing.append(f"a fixture in {FIXTURES} that ends with '--> {kind}(…)'")
    name = PAGES.get(kind, snake_case(kind))
    return missing + without_page(f"docs/statements/{name}.md", name.partition("_")[0])


def missing_of_metric(name: str, module: str) -> list[str]:
    """The pieces that a metric of ours lacks."""
    file = f"{module.replace('.', '/')}.py"
    missing = [] if (ROOT / file).exists() else [f"the file {file}"]
    tested = (f.read_text(encoding="utf-8") for f in (ROOT / "tests/metrics").glob("*.py"))
    if not any(name in text for text in tested):
        missing.append("a test in tests/metrics")
    return missing + without_page("docs/metrics.md", name)


def missing_of_handler(entry: EntryPoint) -> list[str]:
    """The pieces that a handler of ours lacks."""
    folder = f"handlers/{entry.module.partition('.')[0]}"
    missing = [] if (ROOT / folder).is_dir() else [f"the folder {folder}"]
    conformance = re.compile(
        rf"^class \w+\(\w*Conformance\):.*?^    handler = {entry.attr}(?:\.wrap\(.+\))?$", re.MULTILINE | re.DOTALL
    )
    if not any(conformance.search(f.read_text(encoding="utf-8")) for f in (ROOT / "tests").rglob("test_*.py")):
        missing.append(f"a test class: class Test{entry.attr}(HandlerConformance): handler = {entry.attr}")
    return missing + without_page(f"docs/handlers/{entry.name}.md", entry.name)


def ours() -> list[EntryPoint]:
    """The handlers that come with sqlft."""
    return [e for e in plugins.find_entry_points().values() if e.dist is not None and e.dist.name == "sqlft"]


@pytest.mark.parametrize("kind", kinds())
def test_a_statement_has_all_its_pieces(kind: str) -> None:
    assert missing_of_statement(kind) == []


@pytest.mark.parametrize("name", sorted(metrics.BUILT_IN))
def test_a_metric_has_all_its_pieces(name: str) -> None:
    assert missing_of_metric(name, metrics.BUILT_IN[name]) == []


@pytest.mark.parametrize("entry", ours(), ids=lambda e: e.name)
def test_a_handler_has_all_its_pieces(entry: EntryPoint) -> None:
    assert missing_of_handler(entry) == []


def test_every_handler_has_an_entry_point() -> None:
    folders = {p.parent.name for p in (ROOT / "handlers").glob("*/__init__.py")}
    assert folders == {e.module.partition(".")[0] for e in ours()}


def test_every_page_is_about_something() -> None:
    statement_pages = {PAGES.get(k, snake_case(k)) for k in kinds()}
    assert {p.stem for p in (ROOT / "docs/statements").glob("*.md")} <= statement_pages | {"index", "README"}
    assert {p.stem for p in (ROOT / "docs/handlers").glob("*.md")} <= {e.name for e in ours()} | {"index", "README"}
