"""What an export says of itself: `sqlft.json` for programs, `README.md` as the hub's model cards are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from importlib.metadata import version as package_version
from pathlib import Path

from sqlft._types import Row
from sqlft.catalog.records import Model, Version, to_json, utc_now
from sqlft.exporting.comparison import Comparison
from sqlft.exporting.folders import PROVENANCE_FILE
from sqlft.handler import ExportNotes, ExportRequest, Handler
from sqlft.inference.resolve import ResolvedVersion
from sqlft.options import is_secret
from sqlft.redact import redact_keys, redact_secrets, redact_statement
from sqlft.secrets import references
from sqlft.session import Session, format_dollars

FORMAT_VERSION = 1
CARD_FILE = "README.md"
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}
"""SPDX identifiers that the hub knows, by which bases are licensed here; others are 'other' with a name."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
RELATIONS = {"peft": "adapter", "merged": "finetune"}


def write_provenance(
    session: Session, resolved: ResolvedVersion, request: ExportRequest, compared: Comparison | None, folder: Path
) -> None:
    """Write sqlft.json: where the export is from, and the digest of every other file."""
    model, version = resolved.model, resolved.version
    about = {
        "format_version": FORMAT_VERSION,
        "format": request.format,
        "quantization": request.quantization,
        "model": model.key.name,
        "version": version.key.number,
        "base": model.base,
        "predict": model.predict,
        "outputs": model.outputs,
        "prompt_template": model.prompt_template,
        "system": model.system,
        "model_options": _list_model_options(model, type(resolved.handler)),
        "training_options": references.redact_options(version.options),
        "query": None if version.query is None else redact_statement(version.query),
        "row_count": version.row_count,
        "data_digest": version.data_digest,
        "scores": list_scores(session, version),
        "cost": _list_costs(version),
        "verified": compared and {"prompts": compared.count, "same": compared.same},
        "created_at": utc_now().isoformat(timespec="seconds"),
        "sqlft_version": package_version("sqlft"),
        "files": {
            f.relative_to(folder).as_posix(): _digest(f)
            for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name != PROVENANCE_FILE  # that of a base which is an export itself
        },
    }
    text = json.dumps(json.loads(to_json(about)), ensure_ascii=False, indent=2)
    (folder / PROVENANCE_FILE).write_text(redact_secrets(redact_keys(text)) + "\n", encoding="utf-8")


def write_card(
    session: Session,
    resolved: ResolvedVersion,
    request: ExportRequest,
    notes: ExportNotes,
    compared: Comparison | None,
    folder: Path,
) -> None:
    """Write README.md, with the fields that the hub reads."""
    scores = list_scores(session, resolved.version)
    parts = [
        _format_header(request, notes),
        _format_facts(resolved, request, notes),
        _format_scores(scores),
        _format_check(compared, request),
        f"## How to ask it\n\n{_format_prompt(resolved)}\n\n{notes.usage}",
    ]
    text = "\n\n".join(part for part in parts if part)
    (folder / CARD_FILE).write_text(redact_secrets(redact_keys(text)) + "\n", encoding="utf-8")


def list_scores(session: Session, version: Version) -> list[dict[str, object]]:
    """The newest score of the version by each metric, on each data."""
    names = ("metric", "answer", "value", "low", "high", "interval", "n", "baseline", "difference", "p_value")
    kept = session.catalog.table("evaluations").to_pylist()
    own = [
        row
        for row in kept
        if (row["model"], row["project"], row["version"]) == (*version.key.model, version.key.number)
    ]
    return [{name: row[name] for name in (*names, "data_digest") if row[name] is not None} for row in own]


def _list_model_options(model: Model, cls: type[Handler]) -> dict[str, object]:
    """Those of CREATE MODEL, without secrets and what they refer to."""
    classes = (cls.engine_options, cls.model_options, cls.predict_options)
    return {
        name: value
        for name, value in model.options.items()
        if not name.startswith("$")
        and not is_secret(name, *classes)
        and not (isinstance(value, Mapping) and {"$env", "$secret"} & value.keys())
    }


def _list_costs(version: Version) -> dict[str, object]:
    about = version.details
    known = {"usd": about.get("cost_usd"), "seconds": version.seconds, "tokens": about.get("tokens")}
    return {name: value for name, value in known.items() if value is not None}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{file_digest(opened, 'sha256').hexdigest()}"


def _format_header(request: ExportRequest, notes: ExportNotes) -> str:
    """The YAML before a card; JSON's texts are YAML's."""
    lines = []
    if HUB_ID.fullmatch(notes.base):
        lines += [f"base_model: {json.dumps(notes.base)}"]
        lines += [f"base_model_relation: {RELATIONS.get(request.format, 'quantized')}"]
    if notes.licence is not None:
        known = HUB_LICENCES.get(notes.licence)
        lines += [f"license: {known or 'other'}"] + ([] if known else [f"license_name: {json.dumps(notes.licence)}"])
    tags = ["sqlft", *(["lora"] if request.format == "peft" else [])]
    lines += [f"library_name: {notes.library}", "pipeline_tag: text-generation", "tags:", *(f"- {t}" for t in tags)]
    return "\n".join(["---", *lines, "---"])


def _format_facts(resolved: ResolvedVersion, request: ExportRequest, notes: ExportNotes) -> str:
    model, version = resolved.model, resolved.version
    local = "" if HUB_ID.fullmatch(notes.base) else " (a folder of the machine that exported it)"
    trained = "" if version.query is None else ", fine-tuned with LoRA"
    facts: list[tuple[str, object]] = [
        ("Base", f"{notes.base}{local}"),
        ("Licence of the base", notes.licence or "not known: look at the base's own card"),
        ("Format", request.format + (f", {request.quantization}" if request.quantization else "")),
        ("Training rows", version.row_count),
        ("Digest of the rows", version.data_digest),
        ("Training options", _format_options(version.options)),
        ("Cost of the training", _format_cost(version)),
        ("Thinking", model.options.get("thinking", "off")),
    ]
    rows = "\n".join(f"| {name} | {_escape_cell(str(value))} |" for name, value in facts if value not in (None, ""))
    remarks = "".join(f"\n\n{remark}" for remark in notes.remarks)
    return (
        f"# {model.key.name}, version {version.key.number}\n\n`{notes.base}`{trained}, exported by "
        f"[sqlft](https://pypi.org/project/sqlft/) {package_version('sqlft')}. It answers with `{model.predict}`.\n\n"
        f"| | |\n| --- | --- |\n{rows}{remarks}"
    )


def _format_options(options: Mapping[str, object]) -> str:
    shown = references.redact_options(options)
    return ", ".join(f"{name} = {value}" for name, value in shown.items() if value not in (None, [], ""))


def _format_cost(version: Version) -> str:
    costs = _list_costs(version)
    usd, seconds = costs.get("usd"), costs.get("seconds")
    known = [
        format_dollars(usd) if isinstance(usd, int | float) else "",
        f"{seconds / 60:.1f} minutes" if isinstance(seconds, int | float) else "",
        f"{costs['tokens']:,} tokens" if isinstance(costs.get("tokens"), int) else "",
    ]
    return ", ".join(part for part in known if part)


def _format_scores(scores: Sequence[Row]) -> str:
    if not scores:
        return ""
    rows = [
        f"| {s['metric']} | {_format_number(s.get('value'))} | {_format_number(s.get('low'))} to "
        f"{_format_number(s.get('high'))} | {s.get('n')} | {s.get('baseline') or ''} |"
        for s in scores
    ]
    head = "| metric | value | 95 % interval | rows | against |\n| --- | --- | --- | --- | --- |"
    return f"## Scores\n\n{head}\n" + "\n".join(rows)


def _format_number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "?"


def _format_check(compared: Comparison | None, request: ExportRequest) -> str:
    if compared is None:
        return ""
    rounded = f", in {request.quantization}," if request.quantization else ""
    return (
        f"## Verified\n\nThis export{rounded} and the version it was made of were asked {compared.count} prompts: "
        f"{compared.same} answers are the same, {len(compared.differences)} are not."
    )


def _format_prompt(resolved: ResolvedVersion) -> str:
    system = resolved.prompt.system
    texts = [f"Every question was put as\n\n{_format_block(resolved.model.prompt_template)}"]
    if system is not None:
        texts.append(f"behind the system message\n\n{_format_block(system)}")
    return "\n\n".join(texts)


def _format_block(text: str) -> str:
    """A text as a block of code, whatever fences are in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
