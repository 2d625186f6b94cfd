"""EXPORT MODEL: a version as a folder that other programs read.

Called by the statements.  In: a resolved version and what was asked for.  Out: a folder, published by one rename, with
the handler's files, a model card and `sqlft.json`, which CREATE MODEL … FROM EXPORT reads; a row that says what it has.
Not here: how weights are written (the handler), taking exports in (`statements.models`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from sqlft.catalog.files import build_folder_name
from sqlft.catalog.tables import make_schema
from sqlft.errors import Cancelled, NotSupported, OptionError, did_you_mean
from sqlft.exporting import hub
from sqlft.exporting.comparison import Comparison, compare_answers, read_prompts
from sqlft.exporting.folders import stage_folder
from sqlft.exporting.provenance import write_card, write_provenance
from sqlft.handler import ExportNotes, ExportRequest, Exports, ReportStage
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.options import build_options
from sqlft.session import Parameters, Session, Tick
from sqlft.sql.statements import ExportModel

RESULT_SCHEMA = make_schema(
    "folder text, format text, files text[], bytes integer, verified integer, same integer, different integer"
)


@dataclass
class ExportSettings:
    """EXPORT MODEL … TO … (…), or USING"""

    format: Annotated[str | None, "peft (the adapter), merged, gguf or ollama; without it the engine's first"] = None
    quantization: Annotated[str | None, "numbers of a GGUF file: f16 (the default), bf16, f32, q8_0"] = None
    verify: Annotated[
        Any,
        "so many prompts, or those of a query in parentheses, are answered by the version and by the export: "
        "differences are shown",
    ] = None
    overwrite: Annotated[bool, "take the place of an earlier export in that folder"] = False
    push_to: Annotated[
        str | None, "a repository of the Hugging Face hub, 'owner/name', made if need be, by the token in HF_TOKEN"
    ] = None
    private: Annotated[bool, "whether that repository is private, if it is made"] = True


def run_export_model(session: Session, statement: ExportModel, parameters: Parameters) -> pa.Table:
    """Write a version to a folder for other programs: the adapter, merged weights, a GGUF file, or one for Ollama."""
    if not isinstance(statement.path, str) or not statement.path or "\0" in statement.path:
        raise OptionError(f"The folder of EXPORT MODEL is no path: {statement.path!r}.", "Write: TO 'my_model'.")
    settings = build_options(ExportSettings, statement.options, f"EXPORT MODEL {statement.name}")
    resolved = resolve(session, statement.name.key, statement.name.version)
    handler = _find_exporter(resolved)
    request = _build_request(resolved, handler, settings)
    handler.check_export(resolved.spec, resolved.artifact, request)
    push = hub.prepare_push(settings.push_to, settings.private) if settings.push_to is not None else None
    prompts = [] if settings.verify is None else read_prompts(session, resolved, settings.verify, parameters)
    report = _make_report(session, str(resolved.version.key))
    with stage_folder(Path(statement.path), settings.overwrite) as staged:
        notes = handler.export(resolved.spec, resolved.artifact, request, staged.folder, report)
        compared = compare_answers(session, resolved, handler, request, staged.folder, prompts) if prompts else None
        write_card(session, resolved, request, notes, compared, staged.folder)
        write_provenance(session, resolved, request, compared, staged.folder)
        staged.publish()
    if push is not None:
        report(f"uploading to {settings.push_to}", None)
        push(staged.target, f"{resolved.version.key}, by sqlft")
    _show_remarks(session, resolved, request, notes, compared)
    return _build_result(staged.target, request, compared)


def _find_exporter(resolved: ResolvedVersion) -> Exports:
    key, name = resolved.version.key, resolved.handler_name
    if not isinstance(resolved.handler, Exports):
        raise NotSupported(
            f"{key} cannot be exported: the engine '{name}' has no weights here, they stay with the provider.",
            f"DESCRIBE {key} shows the provider's name of it (ARTIFACT), if it was trained there; a model of "
            "engine = 'local' can be exported.",
        )
    if resolved.outputs.is_vector or resolved.outputs.is_score:
        what = "makes embeddings" if resolved.outputs.is_vector else "gives scores"
        raise NotSupported(f"{key} {what}, which no export has.", "Copy the base itself.")
    return resolved.handler


def _build_request(resolved: ResolvedVersion, handler: Exports, settings: ExportSettings) -> ExportRequest:
    formats = handler.export_formats
    chosen = (settings.format or next(iter(formats))).lower()
    if chosen not in formats:
        raise OptionError(
            f"There is no export format '{chosen}'.{did_you_mean(chosen, formats)}", f"There are: {', '.join(formats)}."
        )
    kinds = formats[chosen]
    kind = settings.quantization.lower() if settings.quantization is not None else next(iter(kinds), None)
    if settings.quantization is not None and kind not in kinds:
        quantized = ", ".join(name for name, some in formats.items() if some)
        raise OptionError(
            f"The format {chosen} has no quantization '{settings.quantization}'.",
            f"It has: {', '.join(kinds)}." if kinds else f"Leave QUANTIZATION out, or use FORMAT {quantized}.",
        )
    key = resolved.version.key
    name = f"{build_folder_name(key.model.name)}-{key.number}"
    return ExportRequest(name, chosen, kind, resolved.prompt.system)


def _make_report(session: Session, name: str) -> ReportStage:
    def report(what: str, share: float | None) -> None:
        if session.interrupted:
            raise Cancelled(f"The export of {name} was stopped, and nothing was written.", "Run it again.")
        session.show_progress(Tick(f"{name}: {what}", share or 0.0, None if share is None else 1.0))

    return report


def _show_remarks(
    session: Session, resolved: ResolvedVersion, request: ExportRequest, notes: ExportNotes, compared: Comparison | None
) -> None:
    for remark in notes.remarks:
        session.show_notice(remark)
    if compared is not None:
        for text in compared.describe_differences(str(resolved.version.key), request):
            session.show_warning(text)


def _build_result(folder: Path, request: ExportRequest, compared: Comparison | None) -> pa.Table:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    row = {
        "folder": str(folder),
        "format": request.format,
        "files": [f.relative_to(folder).as_posix() for f in files],
        "bytes": sum(f.stat().st_size for f in files),
        "verified": compared and compared.count,
        "same": compared and compared.same,
        "different": compared and len(compared.differences),
    }
    return pa.Table.from_pylist([row], RESULT_SCHEMA)
