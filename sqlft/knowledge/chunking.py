"""Texts to chunks: by characters with overlap, by Markdown headings, by fields of JSON, by tokens.

Called by `insert`.  Out: for each text its chunks, in order, with where they are from.  The same text and options give
the same chunks, on any machine.  Not here: texts of other files (PDF); make them text in the query that inserts.

A text is cut at the best place near its end: between paragraphs, else lines, else sentences, else words, else
characters.  Each chunk but the first begins with the last words of the one before it, at most `overlap` of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

ChunkKind = Literal["text", "markdown", "json", "tokens"]
TokenCounter = Callable[[Sequence[str]], list[int] | None]
DEFAULT_SIZE, DEFAULT_OVERLAP = 1000, 200
DEFAULT_TOKENS, DEFAULT_TOKEN_OVERLAP = 256, 32
BREAKS = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", r"(?<=[.!?。！？])\s+|(?<=[。！？])", r"\s+"))
"""Where a text is cut, the best first: behind a match."""
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t].*$|^[^\n]+\n(?:=+|-{2,})[ \t]*$", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


class Chunk(NamedTuple):
    """A part of a text: what is embedded, and the characters of the text that it is from."""

    content: str
    start: int
    end: int


@dataclass(frozen=True)
class ChunkOptions:
    """How texts are chunked; `size` and `overlap` are characters, or of kind 'tokens' tokens."""

    kind: ChunkKind = "text"
    size: int = DEFAULT_SIZE
    overlap: int = DEFAULT_OVERLAP
    separators: tuple[str, ...] = ()
    """Where texts are cut, the best first, in place of paragraphs, lines, sentences and words."""
    flatten_nested: bool = True
    chunk_by_object: bool = True
    include_fields: tuple[str, ...] = ()
    exclude_fields: tuple[str, ...] = ()
    nested_delimiter: str = "."

    @property
    def signature(self) -> str:
        """What a document's digest has of them: another one means that it is chunked again."""
        return json.dumps(asdict(self), sort_keys=True)


def split_text(text: str, options: ChunkOptions, count_tokens: TokenCounter | None = None) -> list[Chunk]:
    """The chunks of one text; none of a text that is empty or only space.

    >>> [c.content for c in split_text("One two. Three four five.", ChunkOptions(size=12, overlap=0))]
    ['One two.', 'Three four', 'five.']
    >>> split_text("  a text  ", ChunkOptions())
    [Chunk(content='a text', start=2, end=8)]
    """
    if options.kind == "json":
        return list(_split_json(text, options))
    if options.kind == "tokens":
        size, overlap = _measure_in_characters(text, options, count_tokens)
    else:
        size, overlap = options.size, options.overlap
    if options.kind == "markdown":
        return [chunk for part in _split_markdown(text) for chunk in _split_section(text, part, size, overlap)]
    return list(_cut(text, 0, len(text), size, overlap, _find_breaks(options)))


def _find_breaks(options: ChunkOptions) -> Sequence[re.Pattern[str]]:
    if not options.separators:
        return BREAKS
    return [re.compile(re.escape(separator)) for separator in options.separators if separator]


def _cut(
    text: str, start: int, end: int, size: int, overlap: int, breaks: Sequence[re.Pattern[str]] = BREAKS
) -> Iterator[Chunk]:
    """text[start:end] in chunks of at most `size` characters; looks at each character a few times only."""
    at, done = start, start
    while at < end:
        stop = end if end - at <= size else _find_cut(text, at, at + size, overlap, breaks)
        first, last = _strip(text, at, stop)
        is_new = last > max(first, done)  # else it is what the chunk before it ended with
        if is_new:
            yield Chunk(text[first:last], first, last)
            done = last
        if stop >= end:
            return
        at = max(_find_overlap(text, at, stop, overlap), at + 1) if is_new else stop


def _find_cut(text: str, at: int, limit: int, overlap: int, breaks: Sequence[re.Pattern[str]]) -> int:
    """Where the chunk that begins at `at` ends: behind the last match of the best kind in its second half."""
    low = at + max((limit - at) // 2, min(overlap, limit - at - 1) + 1)
    for pattern in breaks:
        cut = 0
        for match in pattern.finditer(text, at, limit + 1):
            is_inside = match.end() <= limit or match[0].isspace()  # space at the end is cut off
            if low <= match.end() and is_inside:
                cut = match.end()
        if cut:
            return cut
    return limit


def _find_overlap(text: str, at: int, stop: int, overlap: int) -> int:
    """Where the next chunk begins: at a word's start, at most `overlap` characters before `stop`."""
    if overlap <= 0:
        return stop
    first = max(stop - overlap, at + 1)
    if text[first - 1].isspace() or not text[first].isalnum():
        return first
    word = re.compile(r"\s").search(text, first, stop)
    return stop if word is None and _is_spaced(text, first, stop) else first if word is None else word.end()


def _is_spaced(text: str, first: int, stop: int) -> bool:
    """Whether the script there puts spaces between words; Chinese, Japanese and Thai do not."""
    return text[first:stop].isascii()


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


# -- tokens ------------------------------------------------------------------------------------------------------------


def _measure_in_characters(text: str, options: ChunkOptions, count: TokenCounter | None) -> tuple[int, int]:
    """So many characters that pieces of that length have at most `size` tokens, by counting some of this text."""
    counts = count([text]) if count is not None and text else None
    total = counts[0] if counts else -(-len(text) // 4)
    if total <= options.size:
        return max(len(text), 1), 0
    size = max(1, len(text) * options.size // total)
    while size > 1 and counts is not None and count is not None:
        pieces = [chunk.content for chunk in _cut(text, 0, len(text), size, 0)]
        most = max(count(pieces) or [0])
        if most <= options.size:
            break
        size = min(size - 1, size * options.size // most)
    return size, size * options.overlap // options.size


# -- Markdown ----------------------------------------------------------------------------------------------------------


class _Section(NamedTuple):
    """A part of a Markdown text under one heading; `path` are the headings above it, outermost first."""

    start: int
    end: int
    path: tuple[str, ...]


def _split_markdown(text: str) -> Iterator[_Section]:
    """The sections of a text; what looks like a heading in a fenced block of code is none."""
    fences = [match.start() for match in FENCE.finditer(text)]
    headings, fence = [], 0
    for heading in HEADING.finditer(text):
        while fence < len(fences) and fences[fence] < heading.start():
            fence += 1
        if fence % 2 == 0:
            headings.append(heading)
    path: list[tuple[int, str]] = []
    starts = [0, *(heading.start() for heading in headings)]
    ends = [*starts[1:], len(text)]
    for start, end, match in zip(starts, ends, [None, *headings], strict=True):
        above = tuple(title for _, title in path)
        if match is not None:
            level, title = _read_heading(match[0])
            path = [(depth, name) for depth, name in path if depth < level]
            above = tuple(name for _, name in path)
            path.append((level, title))
        yield _Section(start, end, above)


def _read_heading(line: str) -> tuple[int, str]:
    """The level and the title: `## Title`, or a title underlined with = or -."""
    marks = re.match(r" {0,3}(#{1,6})[ \t]+(.*)", line)
    if marks is not None:
        return len(marks[1]), marks[2].strip().rstrip("#").strip()
    title, underline = line.split("\n")
    return (1 if underline.startswith("=") else 2), title.strip()


def _split_section(text: str, section: _Section, size: int, overlap: int) -> Iterator[Chunk]:
    """The section's chunks, each with the headings above it in its first line."""
    above = " > ".join(section.path)
    head = f"{above}\n" if above and len(above) < size // 2 else ""
    for chunk in _cut(text, section.start, section.end, max(1, size - len(head)), min(overlap, size // 4)):
        yield chunk._replace(content=head + chunk.content)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _split_json(text: str, options: ChunkOptions) -> Iterator[Chunk]:
    """A chunk for each object of a list, or for each field of one object; what is no JSON is chunked as text."""
    try:
        value = json.loads(text)
    except ValueError:
        yield from _cut(text, 0, len(text), options.size, options.overlap)
        return
    whole = isinstance(value, Mapping) and options.chunk_by_object
    parts = value if isinstance(value, list) else [value] if whole or not isinstance(value, Mapping) else None
    if parts is None:
        parts = [{name: inner} for name, inner in value.items()]
    for part in parts:
        content = _format_json(part, options) if isinstance(part, Mapping) else _format_value(part)
        for chunk in _cut(content, 0, len(content), options.size, options.overlap):
            yield Chunk(chunk.content, chunk.start, chunk.end)


def _format_json(part: Mapping[str, Any], options: ChunkOptions) -> str:
    """`name: value` in a line for each field, nested ones by their path."""
    fields = dict(_flatten(part, options)) if options.flatten_nested else part
    chosen = {name: value for name, value in fields.items() if _is_chosen(name, options) and value is not None}
    return "\n".join(f"{name}: {_format_value(value)}" for name, value in chosen.items())


def _flatten(part: Mapping[str, Any], options: ChunkOptions, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in part.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, options, f"{name}{options.nested_delimiter}")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for i, item in enumerate(value):
                yield from _flatten(item, options, f"{name}[{i}]{options.nested_delimiter}")
        else:
            yield name, value


def _is_chosen(name: str, options: ChunkOptions) -> bool:
    def is_in(fields: Sequence[str]) -> bool:
        return any(
            name == field or name.startswith((field + options.nested_delimiter, f"{field}[")) for field in fields
        )

    return (not options.include_fields or is_in(options.include_fields)) and not is_in(options.exclude_fields)


def _format_value(value: object) -> str:
    if isinstance(value, list) and not any(isinstance(item, (Mapping, list)) for item in value):
        return ", ".join(_format_value(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
