"""The documentation's examples run and print what they say; its tables are those of the code; its links lead somewhere.

`make docs` writes what these tests find missing; tests/handlers/test_local_docs.py runs the examples of local models.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import duckdb
import pytest

from sqlft import cli
from sqlft.catalog.tables import TABLE_DEFINITIONS
from sqlft.data.checks import text

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FINDING = re.compile(r'finding\(\s*"(\w+)"')
OTHERS = ("docs/shell.md", "docs/local")
"""Pages whose examples are tested where those who write them test theirs."""
NEEDS = {
    "docs/statements/evaluate.md": "scipy",
    "docs/statements/evaluate_knowledge_base.md": "scipy",
    "docs/statements/report_model.md": "matplotlib",
}
DRAWN_BY_2 = ("docs/cost.md",)
"""Pages with a plan, which DuckDB 1 words in another way."""


def load(path: Path) -> ModuleType:
    """A file that belongs to no package."""
    spec = spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load(ROOT / "docs/generate.py")
PAGES = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in generate.pages()}
RUN = [name for name in PAGES if not name.startswith(OTHERS)]


@pytest.mark.parametrize("name", RUN)
def test_examples_and_tables_are_up_to_date(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    if name in DRAWN_BY_2 and duckdb.__version__.startswith("1."):
        pytest.skip("the page's plan is DuckDB 2's")
    assert generate.made(PAGES[name], tmp_path) == PAGES[name], "`make docs` brings the pages up to date"


@pytest.mark.parametrize("name", [n for n in PAGES if n.startswith(OTHERS)])
def test_other_pages_hold_statements_that_can_be_read(name: str) -> None:
    for block in generate.blocks(PAGES[name]):
        if block.language == "sql":
            generate.sqlft.parse(block.text)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        if heading:
            there = HEADING.findall(target.read_text(encoding="utf-8"))
            assert heading in map(slug, there), f"{name} links to {link}"


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_is_linked() -> None:
    linked = {
        ((ROOT / name).parent / link.partition("#")[0]).resolve()
        for name, text in PAGES.items()
        for link in LINK.findall(text)
        if "://" not in link
    }
    alone = [name for name in PAGES if (ROOT / name).resolve() not in linked and name != "README.md"]
    assert alone == []


@pytest.mark.parametrize("table", TABLE_DEFINITIONS)
def test_the_catalogs_tables_are_documented(table: str) -> None:
    page = PAGES["docs/catalog.md"]
    section = page.split(f"## sqlft.{table}\n", 1)[1].split("\n## ", 1)[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert documented == [column.split()[0] for column in TABLE_DEFINITIONS[table].columns.split(",")]


def test_every_finding_is_documented() -> None:
    sources = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "sqlft/data").rglob("*.py")))
    codes = set(FINDING.findall(sources)) | set(re.findall(r'^    "(\w+)": \(?"\{n\}', sources, re.MULTILINE))
    codes |= {style[0] for style in text.STYLES} | {oddity[2] for oddity in text.ODDITIES}
    assert codes
    section = PAGES["docs/data.md"].split("## Findings", 1)[1]
    assert codes == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_the_handlers_of_the_tutorial_pass_the_conformance_suite(tmp_path: Path) -> None:
    for block in generate.blocks(PAGES["docs/writing-a-handler.md"]):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str) -> None:
    parser = cli._build_parser()
    for block in generate.blocks(PAGES[name]):
        if block.language != "sh":
            continue
        for line in block.text.splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["sqlft"] and words[1:2] not in (["--help"], ["--version"]):
                parser.parse_args(cli._add_default_command(shlex.split(line, comments=True)[1:]))
            elif words[:1] == ["make"] and (ROOT / "Makefile").exists():
                targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
                assert words[1] in targets, f"{name}: there is no target {words[1]}"


def test_the_readme_runs_twice(tmp_path: Path) -> None:
    code = "\n".join(b.text for b in generate.blocks(PAGES["README.md"]) if b.language == "python")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == ["[('Urgent? Where is my parcel?',)]", "[('m', 1, 'complete')]"]
