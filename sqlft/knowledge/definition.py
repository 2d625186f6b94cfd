"""What CREATE and ALTER KNOWLEDGE_BASE … USING say, with MindsDB's names and forms; which column of rows is what.

Called by `sqlft.statements.knowledge` and by `insert`.  Out: fields of the record, and what its options mean.  Making
the models of `{"provider": …}` is CREATE MODEL's work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

from sqlft.catalog.records import KnowledgeBase
from sqlft.errors import DataError, OptionError, did_you_mean
from sqlft.handler import Alias, Range
from sqlft.knowledge.chunking import (
    DEFAULT_OVERLAP,
    DEFAULT_SIZE,
    DEFAULT_TOKEN_OVERLAP,
    DEFAULT_TOKENS,
    ChunkKind,
    ChunkOptions,
)
from sqlft.options import build_options, check_option_names, option_names
from sqlft.session import Session
from sqlft.sql.names import format_name, quote_name

RESERVED_COLUMNS = (
    *(
        "id",
        "chunk",
        "chunk_id",
        "chunk_content",
        "content",
        "metadata",
        "distance",
        "relevance",
        "context",
        "question",
    ),
    *("hybrid_search", "hybrid_search_alpha", "search", "reranking", "k", "max_tokens", "separator", "min_relevance"),
)
"""Names that mean something in a query over any knowledge base."""
CHUNK_KINDS: Mapping[str, ChunkKind] = {
    "text": "text",
    "text_chunking": "text",
    "markdown": "markdown",
    "json": "json",
    "json_chunking": "json",
    "tokens": "tokens",
}


@dataclass
class KnowledgeSettings:
    """CREATE KNOWLEDGE_BASE … USING, and ALTER but for storage"""

    embedding_model: Annotated[
        Any,
        "a model with mode = 'embedding', a base that embeds, such as minilm, or what makes a model: "
        "{'provider': 'openai', 'model_name': …, 'api_key': …}; without it words are searched only",
        Alias("model"),
    ] = None
    reranking_model: Annotated[Any, "a model that judges what was found, or what makes one; false: none"] = None
    content_columns: Annotated[list[str] | None, "columns with the texts that are searched; without it: content"] = None
    metadata_columns: Annotated[
        list[str] | None, "columns for conditions; without it all others of the first INSERT"
    ] = None
    id_column: Annotated[
        str | None, "the column that tells texts apart; without it a column id, or the content itself"
    ] = None
    storage: Annotated[str | None, "the attached database that holds the tables; without it the one in use"] = None
    preprocessing: Annotated[Any, "how texts are chunked, in MindsDB's form: {'text_chunking_config': {…}}"] = None
    chunking: Annotated[
        Literal["text", "markdown", "json", "tokens"] | None,
        "where texts are cut: paragraphs, lines, sentences and words; headings; fields; tokens of the embedding model",
    ] = None
    chunk_size: Annotated[
        int | None, f"most characters of a chunk, {DEFAULT_SIZE} by default, or {DEFAULT_TOKENS} tokens", Range(1)
    ] = None
    chunk_overlap: Annotated[
        int | None, f"characters that a chunk has of the one before, {DEFAULT_OVERLAP} by default", Range(0)
    ] = None
    language: Annotated[str | None, "whose endings words lose: 'english' by default, 'none' keeps them"] = None
    is_sparse: Annotated[bool | None, "MindsDB's; only false"] = None
    vector_size: Annotated[int | None, "MindsDB's; how many numbers a vector must have", Range(1)] = None


@dataclass
class TextChunking:
    """preprocessing = {'text_chunking_config': …}"""

    chunk_size: Annotated[int | None, "most characters of a chunk", Range(1)] = None
    chunk_overlap: Annotated[int | None, "characters that a chunk has of the one before", Range(0)] = None
    separators: Annotated[list[str] | None, "where texts are cut, the best first"] = None
    length_function: Annotated[Any, "MindsDB's; taken, and without effect"] = None
    encoding_name: Annotated[Any, "MindsDB's; taken, and without effect"] = None


@dataclass
class JsonChunking:
    """preprocessing = {'json_chunking_config': …}"""

    flatten_nested: Annotated[bool, "nested fields by their path, a.b; false: as JSON"] = True
    chunk_by_object: Annotated[bool, "one object is one chunk; false: each of its fields"] = True
    include_fields: Annotated[list[str] | None, "only these fields"] = None
    exclude_fields: Annotated[list[str] | None, "all but these fields"] = None
    nested_delimiter: Annotated[str, "between the names of a path"] = "."
    chunk_size: Annotated[int | None, "most characters of a chunk", Range(1)] = None
    chunk_overlap: Annotated[int | None, "characters that a chunk has of the one before", Range(0)] = None
    include_metadata: Annotated[Any, "MindsDB's; taken, and without effect"] = None
    metadata_fields: Annotated[Any, "MindsDB's; taken, and without effect: name metadata_columns"] = None
    extract_all_primitives: Annotated[Any, "MindsDB's; taken, and without effect"] = None
    content_column: Annotated[Any, "MindsDB's; taken, and without effect"] = None


def read_settings(options: Mapping[str, object], what: str) -> KnowledgeSettings:
    """The options of USING, whose names are those of MindsDB in any case; OptionError."""
    folded = {name.lower(): value for name, value in options.items()}
    check_option_names(folded, option_names(KnowledgeSettings), what)
    settings = build_options(KnowledgeSettings, folded, what)
    if settings.is_sparse:
        raise OptionError(f"{what}: sparse vectors are not supported.", "Leave is_sparse out.")
    return settings


def check_columns(base: KnowledgeBase) -> None:
    """OptionError for columns that are named twice, or like what a query sees."""
    if not base.content_columns:
        raise OptionError("content_columns is empty.", "Name the columns with the texts: content_columns = ['body'].")
    for kind, names in (("content", base.content_columns), ("metadata", base.metadata_columns)):
        folded = [name.lower() for name in names]
        twice = next((name for name in names if folded.count(name.lower()) > 1), None)
        if twice is not None:
            raise OptionError(f"The {kind} column '{twice}' is named twice.", "Name it once.")
    content = {name.lower() for name in base.content_columns}
    for name in base.metadata_columns:
        if name.lower() in content:
            raise OptionError(
                f"'{name}' is a content column and a metadata column.", "Leave it out of one of the two lists."
            )
        if name.lower() in RESERVED_COLUMNS:
            raise OptionError(
                f"A metadata column cannot be called '{name}': in a query that means another thing.",
                f"Rename it in the query that inserts: SELECT {name} AS its_{name.lower()} …",
            )


def read_chunk_options(options: Mapping[str, object]) -> ChunkOptions:
    """How texts are chunked, by a record's options; OptionError.

    >>> read_chunk_options({"preprocessing": {"text_chunking_config": {"chunk_size": 300}}}).size
    300
    """
    given = options.get("preprocessing")
    if given is not None and not isinstance(given, Mapping):
        raise OptionError("preprocessing must be an object.", "Write: {'text_chunking_config': {'chunk_size': 500}}")
    preprocessing = {str(name).lower(): value for name, value in (given or {}).items()}
    known = ("type", "text_chunking_config", "json_chunking_config")
    if preprocessing.get("type") == "contextual" or "contextual_config" in preprocessing:
        raise OptionError(
            "Contextual preprocessing is not supported.",
            "Ask a model for the context in the query that inserts, and put it before the text.",
        )
    check_option_names(preprocessing, known, "preprocessing")
    text = build_options(TextChunking, _mapping(preprocessing, "text_chunking_config"), "text_chunking_config")
    fields = build_options(JsonChunking, _mapping(preprocessing, "json_chunking_config"), "json_chunking_config")
    kind = _choose_kind(options, preprocessing)
    size, overlap = _choose_size(options, kind, (text.chunk_size, text.chunk_overlap), fields)
    return ChunkOptions(
        kind,
        size,
        overlap,
        tuple(text.separators or ()),
        fields.flatten_nested,
        fields.chunk_by_object,
        tuple(fields.include_fields or ()),
        tuple(fields.exclude_fields or ()),
        fields.nested_delimiter,
    )


def _choose_kind(options: Mapping[str, object], preprocessing: Mapping[str, object]) -> ChunkKind:
    chosen = options.get("chunking") or preprocessing.get("type")
    if chosen is None:
        return "json" if "json_chunking_config" in preprocessing else "text"
    if str(chosen).lower() not in CHUNK_KINDS:
        raise OptionError(f"There is no chunking '{chosen}'.", f"There are: {', '.join(CHUNK_KINDS)}.")
    return CHUNK_KINDS[str(chosen).lower()]


def _choose_size(
    options: Mapping[str, object], kind: ChunkKind, text: tuple[int | None, int | None], fields: JsonChunking
) -> tuple[int, int]:
    """The most of a chunk and its overlap; a default overlap is no more than a fifth of a size that was given."""
    of_kind = (fields.chunk_size, fields.chunk_overlap) if kind == "json" else text
    sizes = [value for value in (options.get("chunk_size"), of_kind[0]) if isinstance(value, int)]
    overlaps = [value for value in (options.get("chunk_overlap"), of_kind[1]) if isinstance(value, int)]
    defaults = (DEFAULT_TOKENS, DEFAULT_TOKEN_OVERLAP) if kind == "tokens" else (DEFAULT_SIZE, DEFAULT_OVERLAP)
    size = sizes[0] if sizes else defaults[0]
    overlap = overlaps[0] if overlaps else min(defaults[1], size // 5)
    if overlap >= size:
        raise OptionError(
            f"chunk_overlap is {overlap}, and must be less than chunk_size, which is {size}.",
            f"Write chunk_overlap = {size // 5}.",
        )
    return size, overlap


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError(f"{name} must be an object.", f"Write: {{'{name}': {{'chunk_size': 500}}}}")
    return {str(key).lower(): inner for key, inner in value.items()}


def read_model(value: object, what: str) -> str | Mapping[str, object] | None:
    """A model as USING names it: its name, what makes one, or None for none."""
    if value is None or value is False or (isinstance(value, str) and value.lower() in ("", "none", "false")):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and value:
        return {str(name).lower(): inner for name, inner in value.items()}
    raise OptionError(
        f"{what} is neither a model's name nor an object.",
        f"Write: {what} = a_model, or {{'provider': 'openai', 'model_name': …, 'api_key': env('NAME')}}.",
    )


# -- columns of rows ---------------------------------------------------------------------------------------------------


class RowColumns(NamedTuple):
    """What the columns of inserted rows are, quoted; None where the rows have no such column."""

    id: str | None
    content: tuple[str | None, ...]
    """One for each of the base's content columns."""
    metadata: tuple[str | None, ...]


def match_columns(
    session: Session, base: KnowledgeBase, names: Sequence[str], *, is_new: bool
) -> tuple[RowColumns, KnowledgeBase]:
    """What each column of the rows is, and the record with its metadata columns, if they are known only now."""
    by_name = {name.lower(): name for name in names}
    id = by_name.pop((base.id_column or "id").lower(), None)
    if id is None and base.id_column is not None:
        raise _missing_column(base, "id", base.id_column, names)
    content = [by_name.pop(name.lower(), None) for name in base.content_columns]
    if not any(content):
        raise _missing_column(base, "content", base.content_columns[0], names)
    is_named = bool(base.options.get("metadata_columns"))
    if is_new and not is_named:
        base = replace(base, metadata_columns=tuple(by_name.values()))
        check_columns(base)
    metadata = [by_name.pop(name.lower(), None) for name in base.metadata_columns]
    if by_name and is_named:
        session.show_notice(f"Left out, as they are not among its metadata_columns: {', '.join(by_name.values())}.")
    elif by_name:
        listed = ", ".join(f"'{name}'" for name in (*base.metadata_columns, *by_name.values()))
        raise DataError(
            f"The knowledge base '{base.key}' has no column '{next(iter(by_name.values()))}'.",
            f"Leave it out of the query, or ALTER KNOWLEDGE_BASE {base.key} USING metadata_columns = [{listed}].",
        )
    return RowColumns(_quote(id), tuple(map(_quote, content)), tuple(map(_quote, metadata))), base


def _quote(name: str | None) -> str | None:
    return None if name is None else quote_name(name)


def _missing_column(base: KnowledgeBase, kind: str, wanted: str, names: Sequence[str]) -> DataError:
    if re.fullmatch(r"col\d+", names[0]):
        columns = [base.id_column or "id", *base.content_columns]
        return DataError(
            f"The rows for '{base.key}' have no names.",
            f"Name them: INSERT INTO {base.key} ({', '.join(map(format_name, columns))}) VALUES ….",
        )
    return DataError(
        f"The {kind} column '{wanted}' of the knowledge base '{base.key}' is not among the rows' columns: "
        f"{', '.join(names)}.{did_you_mean(wanted, names)}",
        f"Name it in the query: SELECT … AS {format_name(wanted)}; or ALTER KNOWLEDGE_BASE {base.key} USING ….",
    )
