"""CREATE MODEL … FROM ADAPTER, GGUF or EXPORT: what others made, checked and kept as versions of a model.

Called by `models`.  In: the statement.  Out: the same statement with what the files say filled in, and the model in the
catalog: version 1 is the base, version 2 an adapter, whose files are copied.  A whole base stays where it lies, as any
folder that is named as a base.  Whether the weights can be run is for the handler to say (`TakesWeights`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from pathlib import Path

from sqlft._types import JsonObject
from sqlft.catalog import files
from sqlft.catalog.records import Version, VersionKey, utc_now
from sqlft.data import Outputs
from sqlft.errors import CatalogError, HandlerError, NotSupported, OptionError, SqlftError, debug
from sqlft.handler import Handler, ModelSpec, TakesWeights
from sqlft.inference.resolve import DELIMITER_OPTIONS
from sqlft.options import resolve_aliases
from sqlft.session import ModelSettings, Session
from sqlft.sql.statements import CreateModel
from sqlft.training.job import stage_folder

CONFIG_FILE, WEIGHTS_FILE, EXPORT_FILE = "adapter_config.json", "adapter_model.safetensors", "sqlft.json"
EXPORT_FORMAT = 1
"""Newest `format_version` of EXPORT_FILE that is read."""
DEFAULT_ENGINE, DEFAULT_OUTPUT = "local", "answer"
SHOWN_OF_EXPORTS = ("model", "version", "query", "row_count", "data_digest", "scores", "cost", "created_at")
"""The query is shown and never run: it is another's text, for another's tables."""


@dataclass(frozen=True)
class ImportedModel:
    """What a path holds: the options that it gives, an adapter or a whole base, and where all that is from."""

    path: Path
    options: Mapping[str, object]
    adapter: Path | None = None
    """The folder of an adapter; None where `path` or a file in it is the base itself."""
    predict: str | None = None
    outputs: JsonObject | None = None
    """The form of typed answers, as `Outputs.to_catalog` writes it."""
    training: JsonObject = field(default_factory=dict)
    """What of the training goes into the version's own fields."""
    provenance: JsonObject = field(default_factory=dict)
    names_base: bool = True
    """Whether the base is the files' word, and not the statement's."""
    known: dict[str, object] = field(default_factory=dict)
    """What the handler knows of the weights, once `check` has asked it."""

    def fill(self, statement: CreateModel) -> CreateModel:
        """The statement with what the files say where it says nothing itself."""
        given = resolve_aliases(statement.options, ModelSettings)
        if not given.get("base") and not self.options.get("base"):
            raise OptionError(f"{self.path} names no base.", "Say which it is: USING base = 'a folder or hub id'.")
        if given.get("base") and self.adapter is None:
            raise OptionError(f"{self.path} is the base itself, and USING names another.", "Leave base out.")
        taken = dict(self.options)
        if {"question_column", "context_column"} & given.keys():
            taken.pop("prompt_template", None)
        options = {"engine": DEFAULT_ENGINE, **taken, **given}
        return replace(statement, predict=statement.predict or self.predict or DEFAULT_OUTPUT, options=options)

    def read_outputs(self) -> Outputs | None:
        """The form of the answers that the files say, if they are typed; CatalogError."""
        if self.outputs is None:
            return None
        try:
            return Outputs.from_catalog(self.predict or DEFAULT_OUTPUT, self.outputs)
        except (KeyError, TypeError, IndexError) as e:
            raise _damaged_export_error(self.path, f"its outputs are none: {e!r}") from e

    def check(self, handler: Handler, spec: ModelSpec) -> None:
        """HandlerError where the handler cannot answer with the weights; what it knows of them is kept in `known`."""
        assert isinstance(handler, TakesWeights)
        try:
            found = handler.check_weights(spec, self.adapter or Path(spec.base).expanduser())
        except SqlftError:
            raise
        except Exception as e:
            raise HandlerError(
                f"The handler failed at checking {self.path}: {type(e).__name__}: {e}",
                "Look at the files; if they are right, tell those who wrote the handler.",
            ) from e
        self.known.update(found)

    @contextmanager
    def explain_base(self) -> Iterator[None]:
        """For a base that cannot be used: who named it, where that was not the statement."""
        try:
            yield
        except OptionError as e:
            if self.adapter is None or not self.names_base:
                raise
            raise OptionError(
                f"The adapter in {self.path} was made for the base '{self.options.get('base')}': {e.message}",
                "Say where that base is: USING base = 'a folder or hub id'.",
            ) from e


def require_taker(cls: type[Handler], engine: str) -> None:
    """NotSupported for a handler that does not take in weights."""
    if not issubclass(cls, TakesWeights):
        raise NotSupported(
            f"The engine '{engine}' does not take in weights that others made.",
            "Use one that does: USING engine = 'local'.",
        )


def read_import(statement: CreateModel) -> tuple[CreateModel, ImportedModel | None]:
    """The statement with what lies at its path filled in, and that, its digests checked; CatalogError.

    A statement that names no path is returned as it is.
    """
    if statement.origin is None:
        return statement, None
    path = Path(statement.origin.path).expanduser().absolute()
    read = {"ADAPTER": _read_adapter, "GGUF": _read_gguf, "EXPORT": _read_export}[statement.origin.kind]
    try:
        if not path.exists():
            raise CatalogError(
                f"There is nothing at {path}.",
                "Write the path as it is seen from here; what is on a hub is got first: hf download owner/name "
                "--local-dir folder.",
            )
        found = read(path)
    except OSError as e:
        raise CatalogError(f"{path} cannot be read: {e.strerror or e}.", "Give yourself the right to read it.") from e
    says_form = statement.columns or statement.predict or {"schema", "json_struct"} & statement.options.keys()
    names_base = "base" not in resolve_aliases(statement.options, ModelSettings)
    made = replace(found, names_base=names_base, outputs=None if says_form else found.outputs)
    return made.fill(statement), made


def keep_import(
    session: Session, imported: ImportedModel, keep: Callable[..., Version], details: JsonObject, tag: str | None
) -> None:
    """The model in the catalog by `keep`, and with it the adapter's files in its folder, in one transaction."""
    catalog = session.catalog
    about = {**details, "imported": imported.provenance, **imported.known}
    if imported.adapter is None:
        keep(tag=tag, details=about)
        return
    with stage_folder(catalog) as staged:
        copy = staged.folder / files.FILES_FOLDER
        copy.mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(imported.adapter / name, copy / name)
        place: Path | None = None

        def add_version(base: VersionKey, _: Path) -> None:
            nonlocal place
            key = VersionKey(base.model, base.number + 1)
            place = catalog.artifact_folder(key)
            opened, digest = files.publish_artifact(copy, place)
            debug("%s: taken in from %s, digest %s", key, imported.path, digest)
            made = {"artifact_path": opened, "artifact_digest": digest, "details": about, "tag": tag}
            ended = {"status": "complete", "parent": base.number, "finished_at": utc_now()}
            catalog.new_version(base.model, **{**imported.training, **made, **ended})

        try:
            keep(details=details, before_commit=add_version)
        except BaseException:
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
                with suppress(OSError):  # of a folder that has other versions
                    place.parent.rmdir()
            raise


def _read_adapter(folder: Path) -> ImportedModel:
    """A folder that PEFT's save_pretrained made; a chat template beside it is the one that it was trained with."""
    config = _read_adapter_config(folder)
    base, version = config.get("base_model_name_or_path"), config.get("peft_version")
    options: dict[str, object] = {"base": base} if isinstance(base, str) and base else {}
    if template := _read_chat_template(folder):
        options["chat_template"] = template
    found = {name: _digest_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE) if (folder / name).exists()}
    provenance = {"from": "adapter", "path": str(folder), "files": found, "base": base, "peft_version": version}
    return ImportedModel(folder, options, folder, provenance=provenance)


def _read_adapter_config(folder: Path) -> JsonObject:
    file = folder / CONFIG_FILE
    if not file.is_file():
        inside = next((found.parent for found in sorted(folder.glob(f"*/{CONFIG_FILE}"))), None)
        whole = folder.is_dir() and (folder / "config.json").exists()
        raise CatalogError(
            f"{folder} holds no adapter: {CONFIG_FILE} is missing.",
            f"There is one in {inside}."
            if inside
            else f"It is a whole base: CREATE MODEL … PREDICT … USING base = '{folder}'."
            if whole
            else "Name the folder that PEFT's save_pretrained made.",
        )
    return _read_json(file)


def _read_chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = _read_json(config).get("chat_template") if config.exists() else None
    return template if isinstance(template, str) else None


def _read_gguf(file: Path) -> ImportedModel:
    """A file that is the base; it stays where it is."""
    if file.is_dir():
        inside = sorted(file.glob("*.gguf"))
        raise CatalogError(
            f"{file} is a folder, and FROM GGUF takes a file.",
            f"Write: FROM GGUF '{inside[0]}'" if inside else "There is no .gguf file in it.",
        )
    about = {"from": "gguf", "path": str(file), "bytes": file.stat().st_size}
    return ImportedModel(file, {"base": str(file)}, provenance=about)


def _read_export(folder: Path) -> ImportedModel:
    """A folder that EXPORT MODEL made, its files as they were then."""
    if not (folder / EXPORT_FILE).is_file():
        raise CatalogError(
            f"{folder} is no export: {EXPORT_FILE} is missing.",
            "Name the folder of EXPORT MODEL … TO; what PEFT made is FROM ADAPTER, a GGUF file FROM GGUF.",
        )
    about = _read_json(folder / EXPORT_FILE)
    number = about.get("format_version")
    if not isinstance(number, int) or number > EXPORT_FORMAT:
        raise CatalogError(
            f"{folder} was made by a newer sqlft (format {number}, this one reads {EXPORT_FORMAT}).",
            "Upgrade: pip install -U sqlft",
        )
    _verify_files(folder, about.get("files"))
    names = ("prompt_template", "system")
    options: dict[str, object] = {name: about[name] for name in names if about.get(name) is not None}
    options |= {n: v for n, v in (about.get("model_options") or {}).items() if not n.startswith("$")}
    adapter = folder if about.get("format") == "peft" else None
    learned = about.get("training_options") or {}
    ends = {name: learned[name] for name in DELIMITER_OPTIONS if learned.get(name)}
    options |= {} if adapter else ends  # a base of its own ends all its answers so
    options["base"] = about.get("base") if adapter else str(_find_exported_base(folder, about.get("format")))
    taken = {name: about[name] for name in SHOWN_OF_EXPORTS if about.get(name) is not None}
    provenance = {"from": "export", "path": str(folder), "files": about["files"], **taken}
    training = {**{name: about.get(name) for name in ("row_count", "data_digest")}, "options": learned}
    form = (about.get("predict"), about.get("outputs"))
    return ImportedModel(folder, options, adapter, *form, training, provenance, known=ends if adapter else {})


def _find_exported_base(folder: Path, kind: object) -> Path:
    if kind == "merged":
        return folder
    found = sorted(folder.glob("*.gguf"))
    if kind not in ("gguf", "ollama") or not found:
        raise _damaged_export_error(folder, f"there is no model of the format {kind!r} in it")
    return found[0]


def _verify_files(folder: Path, listed: object) -> None:
    """CatalogError for a file that is gone or changed since EXPORT MODEL wrote its digest."""
    if not isinstance(listed, Mapping) or not listed:
        raise _damaged_export_error(folder, "it lists no files")
    for name, digest in listed.items():
        file = folder / str(name)
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            raise _damaged_export_error(folder, f"the file {name} is missing")
        if digest != (found := _digest_file(file)):
            raise _damaged_export_error(folder, f"the file {name} was changed (it has {found}, and had {digest})")


def _damaged_export_error(folder: Path, why: str) -> CatalogError:
    return CatalogError(
        f"The export in {folder} is damaged: {why}.",
        "Export it again, or copy the whole folder again; FROM ADAPTER and FROM GGUF ask for no digests.",
    )


def _digest_file(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{file_digest(opened, 'sha256').hexdigest()}"


def _read_json(file: Path) -> JsonObject:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CatalogError(f"{file} is no JSON: {e}.", "Get the folder again.") from e
    if not isinstance(found, dict):
        raise CatalogError(f"{file} is no JSON object.", "Get the folder again.")
    return found
