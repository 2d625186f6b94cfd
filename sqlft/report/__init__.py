"""REPORT MODEL and `sqlft report`: what is known of models as one HTML file that needs no network.

Called by the statement, the command and the shell.  In: a catalog and models.  Out: a page.  Charts are drawn by
matplotlib as SVG; texts of models and data are escaped by Jinja2 and by matplotlib.  `doctor` reports on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from sqlft.catalog.database import build_write_error
from sqlft.catalog.records import Model
from sqlft.catalog.store import Catalog
from sqlft.errors import HandlerNotInstalled, NotFound
from sqlft.inference.resolve import find_model
from sqlft.report.facts import collect_model_facts, format_figure
from sqlft.session import Parameters, Session
from sqlft.sql.statements import ReportModel

INSTALL_HINT = "Run: pip install 'sqlft[evaluation]'"


def run_report_model(session: Session, statement: ReportModel, parameters: Parameters) -> pa.Table:
    """Write the report of a model; the table says where."""
    model = find_model(session, statement.name.key)
    session.require_own(model)
    path = Path(statement.path or f"{_build_file_name(model.key.name)}.html").expanduser()
    write_html_report(session.catalog, [model], path)
    return pa.table({"model": [model.key.name], "report": [str(path.absolute())]})


def write_html_report(catalog: Catalog, models: Sequence[Model], path: Path) -> None:
    """Write the report of these models to a file; CatalogError where that cannot be."""
    text = render_html(catalog, models)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise build_write_error(path, e.strerror or str(e)) from e


def render_html(catalog: Catalog, models: Sequence[Model]) -> str:
    """The report as a text."""
    if not models:
        raise NotFound("There is no model to report on.", "CREATE MODEL makes one.")
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        from sqlft.report import charts
    except ImportError as e:
        raise HandlerNotInstalled(f"Reports need the package '{e.name}'.", INSTALL_HINT) from e
    from importlib.metadata import version

    environment = Environment(
        loader=PackageLoader("sqlft", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = format_figure
    collected = [collect_model_facts(catalog, model) for model in models]
    drawn = [(facts, charts.draw_charts(facts)) for facts in collected]
    now = f"{datetime.now():%Y-%m-%d %H:%M}"
    return environment.get_template("report.html").render(models=drawn, made=now, version=version("sqlft"))


def _build_file_name(name: str) -> str:
    """A file's name for a model's, which may have any letters."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) + "_report"
