"""Writes into the pages what they do not say by themselves: tables from the code, and what the examples print.

Run `python docs/generate.py [PAGE …]`; tests/test_docs.py checks that it would change nothing.

A block of SQL is run as the shell runs it, all blocks of a page on one new database; a block of Python is run too.
The ``text`` block behind one holds what it printed.  A word behind the language says what else may happen:

- ``sql local`` trains or asks a local model: read only, unless `made` is told to run those too,
- ``sql error`` must fail, and its text is the error,
- ``sql read`` is read only: it needs a server, a file of yours, or a network,
- ``python title="x.py"`` (any language) is a file, written to the page's folder before the rest is run.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stdout
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import duckdb
from sqlft_local.base import presets
from sqlft_local.kernels import KERNELS
from sqlft_local.options import TrainOptions
from sqlft_local.train.memory import TrainingSetup, estimate_training_bytes
from sqlft_openai.sunsets import CHECKED_ON, OTHER_TRAINERS, SUNSETS, Sunset

import sqlft
from sqlft import errors, options, plugins
from sqlft.metrics import METRICS
from sqlft.options import Option, document_options, options_of
from sqlft.shell.commands import run_command
from sqlft.shell.running import Runner
from sqlft.shell.screen import Screen
from sqlft.shell.shell import Shell, format_error
from sqlft.sql import statements

ROOT = Path(__file__).parent.parent
WIDTH = "100"
BLOCK = re.compile(r"^```(?P<language>\w+)(?P<more>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
MARKED = re.compile(r"<!-- (?P<kind>\w+):begin ?(?P<of>[\w.:]*) -->\n.*?<!-- (?P=kind):end -->", re.S)
TITLE = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    more: str
    text: str

    @property
    def words(self) -> list[str]:
        """What stands behind the language, but for a title."""
        return TITLE.sub("", self.more).split()

    @property
    def title(self) -> str | None:
        """The file that it shows."""
        found = TITLE.search(self.more)
        return found.group(1) if found else None


def pages() -> list[Path]:
    """Every page that this program looks after."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(m["language"], m["more"].strip(), m["text"]) for m in BLOCK.finditer(page)]


def made(page: str, folder: Path, *, run_local: bool = False) -> str:
    """The page with its tables and outputs as they are now; examples run in `folder`, which is empty."""
    page = MARKED.sub(_table, page)
    with _place(folder, page):
        return _with_outputs(page, Examples(run_local))


class Examples:
    """Runs the blocks of one page, one after the other."""

    def __init__(self, run_local: bool) -> None:
        self._run_local = run_local
        self._out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        screen = Screen(self._out, self._out)
        self.con = sqlft.connect(warn=screen.warn)
        self._shell = Shell(screen, Runner(screen), self.con, run_command)
        self._names: dict[str, Any] = {"__name__": "example"}

    def run(self, block: Block) -> str | None:
        """What a block prints; None if that is not to be compared."""
        if block.title or block.language not in ("sql", "python"):
            return None
        if "read" in block.words or ("local" in block.words and not self._run_local):
            if block.language == "sql":
                sqlft.parse(block.text)
            else:
                compile(block.text, "example", "exec", dont_inherit=True)
            return None
        printed = self._sql(block) if block.language == "sql" else self._python(block)
        return None if "local" in block.words else printed

    def _sql(self, block: Block) -> str:
        *before, last = [block.text] if "error" in block.words else [s.text for s in sqlft.parse(block.text)]
        for text in before:
            self._shell.run_statement(text)
        failed, start = None, self._out.tell()
        try:
            self._shell.run_statement(last)
        except duckdb.Error as e:
            failed = e
            self._out.write(format_error(e) + "\n")
        if (failed is not None) != ("error" in block.words):
            raise AssertionError(f"{'failed' if failed else 'did not fail'}: {block.text}\n{failed or ''}")
        self._out.flush()
        self._out.seek(start)
        return self._out.read()

    def _python(self, block: Block) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block.text, "example", "exec", dont_inherit=True), self._names)
        return printed.getvalue()


def _with_outputs(page: str, examples: Examples) -> str:
    pieces: list[str] = []
    place, printed = 0, None
    for match in BLOCK.finditer(page):
        between = page[place : match.start()]
        block = Block(match["language"], match["more"].strip(), match["text"])
        is_output = block.language == "text" and printed is not None and not between.strip()
        pieces += [between, f"```text\n{_trimmed(printed or '')}```" if is_output else match.group()]
        printed = examples.run(block)
        place = match.end()
    examples.con.close()
    return "".join([*pieces, page[place:]])


def _trimmed(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").split("\n"))


@contextmanager
def _place(folder: Path, page: str) -> Iterator[None]:
    """The page's files in `folder`, which is the working directory and the home, and its package installed there."""
    for block in blocks(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    _install(folder)
    environment = {"SQLFT_HOME": str(folder / "home"), "COLUMNS": WIDTH, "NO_COLOR": "1"}
    with chdir(folder), patch.dict(os.environ, environment), patch.object(sys, "path", [str(folder), *sys.path]):
        plugins.find_entry_points.cache_clear()
        try:
            yield
        finally:
            plugins.find_entry_points.cache_clear()


def _install(folder: Path) -> None:
    """What an installer would write for the page's pyproject.toml: its name and its entry points."""
    if not (folder / "pyproject.toml").exists():
        return
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _table(match: re.Match[str]) -> str:
    kind, of = match["kind"], match["of"]
    begin = f"<!-- {kind}:begin {of} -->" if of else f"<!-- {kind}:begin -->"
    return f"{begin}\n{MAKERS[kind](of)}\n<!-- {kind}:end -->"


def options_table(of: str) -> str:
    """The options of a class, `module:Class`."""
    module, _, name = of.partition(":")
    cls = getattr(import_module(module), name)
    known = options_of(cls)
    rows = [
        (_named(known[option]), _typed(known[option]), default if default in ("", "required") else f"`{default}`", doc)
        for option, _, default, doc in document_options(cls)
    ]
    return _rows(("option", "type", "default", "what it is for"), rows) if rows else "No options."


def _named(option: Option) -> str:
    also = ", ".join(f"`{alias}`" for alias in option.aliases)
    return f"`{option.name}`" + (f", also {also}" if also else "")


def _typed(option: Option) -> str:
    if option.range is None:
        return option.type_name
    low, high = option.range
    return f"{option.type_name}, {f'{low} to {high}' if high is not None else f'at least {low}'}"


def _rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def errors_tree(of: str) -> str:
    """The tree that the errors' module draws."""
    tree = (errors.__doc__ or "").split("::\n\n", 1)[1].split("\n\n")[0]
    return "```text\n" + "\n".join(line.removeprefix("    ") for line in tree.split("\n")) + "\n```"


def metrics_table(of: str) -> str:
    """Every metric that sqlft ships."""
    rows = [(f"`{name}`", (METRICS[name].__doc__ or "").strip().split("\n")[0]) for name in METRICS]
    return _rows(("metric", "a row's score"), rows)


def statements_table(of: str) -> str:
    """Every statement, with its page."""
    rows = []
    for cls in statement_classes():
        text = (cls.__doc__ or "").split(";")[0].split(", EVALUATE")[0].split(", RENAME")[0]
        page = f"{page_of(cls)}.md"
        title = (ROOT / "docs/statements" / page).read_text(encoding="utf-8").split("\n")[0].removeprefix("# ")
        rows.append((f"[{title}]({page})", f"`{text}`"))
    return _rows(("page", "statement"), rows)


def statement_classes() -> list[type[statements.Statement]]:
    """Those of our own, in the order of their module."""
    return [
        cls
        for cls in vars(statements).values()
        if isinstance(cls, type) and issubclass(cls, statements.Statement) and not cls.__subclasses__()
        if cls is not statements.Plain
    ]


def page_of(cls: type) -> str:
    """CreateModel -> create_model."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def floors(of: str) -> str:
    """The floors of the house, roof first, as the import linter checks them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    return "```text\n" + "\n".join(next(c for c in contracts if c["type"] == "layers")["layers"]) + "\n```"


def presets_table(of: str) -> str:
    """Base models by short name."""
    head = ("base", "model", "licence", "login", "weights", "context", "template", "thinking", "learning rate")
    rows = []
    for name, preset in presets.PRESETS.items():
        family = preset.family
        link = f"[{preset.hub_id}](https://huggingface.co/{preset.hub_id})"
        login, thinking = "yes" if family.is_gated else "", f"`{family.thinking}`" if family.thinking else ""
        weights, context = f"{preset.size.parameters / 1e9:.3g} B", f"{family.context:,}"
        own = (weights, context, family.template, thinking, f"{preset.learning_rate:g}")
        rows.append((f"`{name}`", link, family.licence, login, *own))
    return f"{_rows(head, rows)}\n\nAs public sources had it on {presets.CHECKED_ON}."


def memory_table(of: str) -> str:
    """What training the presets takes at least, by the numbers that the base is kept in."""
    numbers = ("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "nf4")
    setups = [TrainingSetup(*kept, targets=TrainOptions().layers, checkpointing=True) for kept in numbers]
    rows = [
        (f"`{name}`", *(f"{estimate_training_bytes(preset.shape, setup, 1024) / 1e9:.1f}" for setup in setups))
        for name, preset in presets.PRESETS.items()
        if preset.shape is not None
    ]
    return _rows(("base", "float32", "bfloat16", "int8", "nf4"), rows)


def _day(sunset: Sunset, day: date | None) -> str:
    return "" if day is None else f"{day}{' at least' if sunset.is_earliest else ''}"


def _notes(sunset: Sunset) -> list[str]:
    others = "it trains no other model, the one that CREATE MODEL takes by default among them"
    return [*([sunset.note] if sunset.note else []), *([others] if sunset.tunes else [])]


def sunsets_table(of: str) -> str:
    """What ends where, by day."""
    rows = [
        (
            s.provider,
            ", ".join(f"`{m}`" for m in s.models or s.tunes) or "all",
            _day(s, s.trains_until) or ("see below" if not s.asks_until else ""),
            _day(s, s.asks_until),
            f"`{s.instead}`" if s.instead else "",
            f"<{s.source}>",
        )
        for s in SUNSETS
    ]
    notes = "\n".join(f"- {s.provider}: {note}." for s in SUNSETS for note in _notes(s))
    table = _rows(("provider", "models", "trains until", "asks until", "goes on", "source"), rows)
    return f"{table}\n\n{notes}\n\nThe sources were read on {CHECKED_ON}. {OTHER_TRAINERS}"


def other_names_table(of: str) -> str:
    """What other tools call an option: TRAINING or ASKING."""
    rows = []
    for other in getattr(options, of):
        here = " or ".join(f"`{h}`" for h in other.own_names)
        rows.append((", ".join(f"`{n}`" for n in other.names), here, other.note))
    return _rows(("elsewhere", "here", "what is different"), rows)


def kernels_table(of: str) -> str:
    """The parts of a training that have a switch."""
    return _rows(("kernel", "what it is"), [(f"`{name}`", what) for name, what in KERNELS.items()])


MAKERS: dict[str, Callable[[str], str]] = {
    "options": options_table,
    "errors": errors_tree,
    "metrics": metrics_table,
    "statements": statements_table,
    "floors": floors,
    "kernels": kernels_table,
    "presets": presets_table,
    "memory": memory_table,
    "sunsets": sunsets_table,
    "names": other_names_table,
}


def main() -> None:
    """Rewrite the pages named, or all."""
    for page in [Path(p).resolve() for p in sys.argv[1:]] or pages():
        before = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            after = made(before, Path(folder).resolve())
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} rewritten")


if __name__ == "__main__":
    main()
