r"""A JSON schema as a grammar that takes just the text that training teaches, for OpenVINO's structured output.

Called by `choose` and `openvino`.  In: a schema.  Out: rules in the EBNF that xgrammar and llama.cpp's GBNF share, or
which part of the schema cannot be written: such models stay on llama.cpp, whose own JSON schemas have more keywords.

What repeats is a rule that ends with itself, as a list of strings is here:

    items ::= "]" | ", " string items

With `character*` for the characters of a string xgrammar takes five times as long (docs/decisions/011-openvino.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sqlft.handler import ITEM_SEPARATOR, KEY_SEPARATOR

if TYPE_CHECKING:
    from sqlft_local._types import JsonMapping

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "$defs", "definitions")
)
"""Keywords that say nothing about the text of a value."""
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"format", "pattern"},
    "integer": {"minimum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
"""Those that are bound, by the type that they are about."""
MAX_COUNTED_ITEMS = 64
"""Items of an array whose number is bounded: each is a rule."""
CHARACTER = r'[^"\\\x00-\x1f\x7f]'
RULES = {
    "string": r'"\"" characters',
    "characters": rf'"\"" | {CHARACTER} characters | "\\" escape characters',
    "escape": r'["\\bfnrt] | "u00" ("0" [0-7bef] | "1" [0-9a-f] | "7f")',
    "natural": '"0" | [1-9] [0-9]*',
    "integer": '"0" | "-"? [1-9] [0-9]*',
    "number": '"-"? natural ("." [0-9]+)? ([eE] [+-]? [0-9]+)?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "any": "object | array | string | number | boolean | null",
    "object": '"{" ("}" | member members)',
    "members": f'"}}" | "{ITEM_SEPARATOR}" member members',
    "member": f'string "{KEY_SEPARATOR}" any',
    "array": '"[" ("]" | any items)',
    "items": f'"]" | "{ITEM_SEPARATOR}" any items',
    "date": '[0-9] [0-9] [0-9] [0-9] "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "minutes": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]',
    "moment": 'date "T" minutes ":" [0-5] [0-9] ("." [0-9]+)? ("Z" | [+-] minutes)',
    "uuid": 'hex hex "-" hex "-" hex "-" hex "-" hex hex hex',
    "hex": " ".join(["[0-9a-fA-F]"] * 4),
}
FORMATS = {"date": "date", "date-time": "moment", "uuid": "uuid"}
PATTERN_PART = re.compile(
    r"(?P<class>\[[A-Za-z0-9_.:-]+\])|(?P<sign>\{\d\d?(?:,\d\d?)?\}|[()?])|(?P<text>[\w :,;/=-]+?)"
)
"""What of regular expressions is bound: classes, counts, groups and plain characters, one behind the other."""


def write_grammar(schema: JsonMapping) -> str:
    r"""The grammar of the schema's values; UnboundPart.

    >>> print(write_grammar({"type": "object", "properties": {"a": {"enum": ["x", None]}}, "required": ["a"],
    ...                      "additionalProperties": False}))
    root ::= "{" "\"a\": " ("\"x\"" | "null") "}"
    """
    writer = _GrammarWriter(schema)
    root = writer.write_value(schema)
    return "\n".join([f"root ::= {root}", *(f"{name} ::= {body}" for name, body in writer.rules.items())])


def find_unbound_part(schema: JsonMapping) -> str | None:
    """What of a schema `write_grammar` does not write, or None if it writes all.

    >>> find_unbound_part({"type": "string", "maxLength": 3})
    "'maxLength'"
    """
    try:
        write_grammar(schema)
    except UnboundPart as e:
        return str(e)
    except RecursionError:
        return "a schema so deep, or with names so long"
    return None


class UnboundPart(ValueError):
    """The message names the part of a schema that cannot be written as a grammar here."""


class _GrammarWriter:
    """Collects the rules that the values of one schema need."""

    def __init__(self, root: JsonMapping) -> None:
        self._root = root
        self.rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        """Of rules, by their bodies; of references, by what they refer to."""
        self._resolving: list[str] = []
        """References whose values are being written, and no object or array around them yet."""

    def write_value(self, schema: object) -> str:
        """An expression for the values of a schema."""
        if schema is True:
            return self._use("any")
        if not isinstance(schema, Mapping):
            raise UnboundPart(f"the schema {schema}")
        words = {k: v for k, v in schema.items() if k not in ANNOTATIONS}
        if not words:
            return self._use("any")
        for word in ("$ref", "anyOf", "oneOf"):
            if word in words:
                if len(words) > 1:
                    raise UnboundPart(f"{word} beside {', '.join(sorted(set(words) - {word}))}")
                return self._write_reference(words[word]) if word == "$ref" else self._write_choice(words[word])
        types = words.pop("type", list(KEYWORDS))
        types = list(types) if isinstance(types, list) else [types]
        if "enum" in words or "const" in words:
            return self._write_literals(words, types)
        bound = set[str]().union(*(KEYWORDS.get(t, ()) for t in types))
        if unknown := sorted(set(words) - bound) or [t for t in types if t not in KEYWORDS]:
            raise UnboundPart(f"'{unknown[0]}'")
        if "number" in types and "integer" in types and "minimum" not in words:
            types.remove("integer")
        return _join_choices(self._write_typed(t, words) for t in types)

    def _write_typed(self, kind: str, words: JsonMapping) -> str:
        if kind in ("object", "array"):
            outer, self._resolving = self._resolving, []
            found = self._write_object(words) if kind == "object" else self._write_array(words)
            self._resolving = outer
            return found
        if kind == "string" and words.keys() & KEYWORDS["string"]:
            return self._write_formatted(words)
        if kind in ("integer", "number") and "minimum" in words:
            if kind == "number" or words["minimum"] != 0:
                raise UnboundPart("'minimum'")
            return self._use("natural")
        return self._use(kind)

    def _write_reference(self, reference: object) -> str:
        key = f"$ref {reference}"
        if key in self._resolving:
            raise UnboundPart(f"'$ref' to {reference} in itself")
        if key not in self._names:
            name = self._names[key] = f"ref{len(self.rules)}"
            self.rules[name] = ""  # its place, for what has itself as a part
            self._resolving.append(key)
            self.rules[name] = self.write_value(self._resolve(str(reference)))
            self._resolving.pop()
        return self._names[key]

    def _resolve(self, reference: str) -> object:
        target: object = self._root if reference.startswith("#") else None
        for part in reference.lstrip("#").strip("/").split("/"):
            if part:
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        if target is None:
            raise UnboundPart(f"'$ref' to {reference}")
        return target

    def _write_choice(self, several: object) -> str:
        if not isinstance(several, list) or not several:
            raise UnboundPart("a choice of nothing")
        return _join_choices(self.write_value(s) for s in several)

    def _write_literals(self, words: JsonMapping, types: list[str]) -> str:
        if len(words) > 1:
            raise UnboundPart(" beside ".join(f"'{word}'" for word in sorted(words)))
        given = words["enum"] if "enum" in words else [words["const"]]
        values = [v for v in given if any(_is_of_type(v, t) for t in types)]
        if not values:
            raise UnboundPart("an enum without values")
        return _join_choices(_quote(_dump(v)) for v in values)

    def _write_object(self, words: JsonMapping) -> str:
        """The properties in their order, from the last to the first: what follows, if one was written and if none."""
        properties, more = words.get("properties") or {}, words.get("additionalProperties", True)
        required = set(words.get("required") or ())
        if required - set(properties):
            raise UnboundPart("'required' properties without a schema")
        rest = first = '"}"'
        if more is not False:
            value = self._name(self.write_value(more))
            member = f'"\\"" {self._write_other_key(list(properties))} "{KEY_SEPARATOR}" {value}'
            rest = self._reserve(f'"}}" | "{ITEM_SEPARATOR}" {member}')
            first = f'("}}" | {member} {rest})'
        for name, schema in reversed(properties.items()):
            key = _dump(name) + KEY_SEPARATOR
            value = self.write_value(schema)
            if name in required:
                first, rest = f"{_quote(key)} {value} {rest}", f"{_quote(ITEM_SEPARATOR + key)} {value} {rest}"
            else:
                value, rest = self._name(value), self._name(rest)
                first = f"({_quote(key)} {value} {rest} | {first})"
                rest = f"({_quote(ITEM_SEPARATOR + key)} {value} {rest} | {rest})"
        return f'"{{" {first}'

    def _write_other_key(self, names: list[str]) -> str:
        """What may follow the quote that opens a key, or a part of one, which is none of the names."""
        if not names:
            return self._use("characters")
        firsts = sorted({n[0] for n in names if n})
        if odd := [c for c in firsts if c in '"\\' or not c.isascii() or not c.isprintable()]:
            raise UnboundPart(f"other properties beside ones with '{odd[0]}' in their names")
        apart = "".join(f"\\x{ord(c):02x}" for c in firsts)  # first in the class: xgrammar reads \x7f and a as \x7fa
        ways = [f"[^{apart}{CHARACTER[2:]} {self._use('characters')}", f'"\\\\" {self._use("escape")} characters']
        ways += [r'"\""'] if "" not in names else []
        for c in firsts:
            ways.append(f"{_quote(c)} {self._write_other_key([n[1:] for n in names if n.startswith(c)])}")
        return self._name(" | ".join(ways))

    def _write_array(self, words: JsonMapping) -> str:
        item = self._name(self.write_value(words.get("items", True)))
        least, most = int(words.get("minItems", 0)), words.get("maxItems")
        most = None if most is None else int(most)
        if max(least, most or 0) > MAX_COUNTED_ITEMS or (most is not None and most < max(1, least)):
            raise UnboundPart(f"arrays of {least} to {most} items")
        rest = '"]"' if most is not None else self._reserve(f'"]" | "{ITEM_SEPARATOR}" {item}')
        for n in range(most if most is not None else max(1, least), 1, -1):
            rest = (
                f'"{ITEM_SEPARATOR}" {item} {rest}'
                if n <= least
                else self._name(f'"]" | "{ITEM_SEPARATOR}" {item} {rest}')
            )
        return f'"[" {item} {rest}' if least else f'"[" ("]" | {item} {rest})'

    def _write_formatted(self, words: JsonMapping) -> str:
        if len(words.keys() & KEYWORDS["string"]) > 1:
            raise UnboundPart("'format' beside 'pattern'")
        if "pattern" in words:
            return rf'"\"" {_translate_pattern(str(words["pattern"]))} "\""'
        if words["format"] not in FORMATS:
            raise UnboundPart(f"the format '{words['format']}'")
        return rf'"\"" {self._use(FORMATS[words["format"]])} "\""'

    def _use(self, name: str) -> str:
        """The name of one of `RULES`, which is written with those it needs."""
        if name not in self.rules:
            body = self.rules[name] = RULES[name]
            for other in re.findall(r"[a-z]+", re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]', "", body)):
                self._use(other)
        return name

    def _name(self, body: str) -> str:
        """A rule for what is used more than once."""
        if re.fullmatch(r"\w+", body):
            return body
        if body not in self._names:
            self._names[body] = f"rule{len(self.rules)}"
            self.rules[self._names[body]] = body
        return self._names[body]

    def _reserve(self, body: str) -> str:
        """A rule that goes on with itself behind its last alternative."""
        name = f"rule{len(self.rules)}"
        self.rules[name] = f"{body} {name}"
        return name


def _join_choices(ways: Iterable[str]) -> str:
    found = list(dict.fromkeys(ways))
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _is_of_type(value: object, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, (int, float)):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")


def _translate_pattern(pattern: str) -> str:
    """A regular expression of a whole text as the dialect has it."""
    inner = pattern.removeprefix("^").removesuffix("$")
    parts = list(PATTERN_PART.finditer(inner))
    if f"^{inner}$" != pattern or "".join(p[0] for p in parts) != inner or not _is_regex(pattern):
        raise UnboundPart(f"the pattern '{pattern}'")
    return "".join(_quote(p[0]) if p["text"] else p[0] for p in parts)


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _dump(value: object) -> str:
    """JSON as training writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(ITEM_SEPARATOR, KEY_SEPARATOR))
    return text.replace("\x7f", "\\u007f")


def _quote(text: str) -> str:
    """A literal of the grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
