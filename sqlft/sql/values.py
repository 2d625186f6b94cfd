"""USING k = v, …: keys that may be dotted, and values as Python has them."""

from __future__ import annotations

import math
from typing import Any

from sqlft.sql.cursor import NAMES, QUERY_WORDS, Cursor
from sqlft.sql.lexer import Token
from sqlft.sql.statements import Env

CONSTANTS: dict[str, bool | None] = {"NULL": None, "TRUE": True, "FALSE": False}
IN_WORDS = frozenset({"-", ".", "/", ":", "::", "@", "+"})
DEPTH = 64


def options(c: Cursor) -> dict[str, Any]:
    """k = v, x.y = v, …; keys that are not quoted are lower-cased, dotted ones give nested mappings."""
    found: dict[str, Any] = {}
    while True:
        first = c.token
        path = [str(p.value).lower() if p.token.kind == "word" else str(p.value) for p in c.dotted("an option's name")]
        c.expect_op("=")
        _put(c, found, path, value(c), first)
        if not c.skip_op(","):
            return found


def value(c: Cursor, depth: int = 0) -> Any:
    """Any value: None, bool, int, float, str, list, dict, Parameter, Env, Source."""
    token = c.token
    if depth > DEPTH:
        raise c.error("This value is nested too deeply.", f"Nest it at most {DEPTH} deep.")
    if token.kind in ("string", "quoted"):
        return c.next().value
    if token.kind == "number" or (token.text in ("-", "+") and c.peek(1).kind == "number"):
        return _number(c)
    if token.kind == "word":
        return _word(c, depth)
    if token.kind == "parameter":
        return c.parameter()
    if token.text == "{":
        return mapping(c, depth)
    if token.text == "[":
        return _list(c, "]", depth)
    if token.text == "(":
        return c.query(None) if c.peek(1).word in QUERY_WORDS else _list(c, ")", depth)
    if token.text == "@":
        raise c.error("Variables are not read here.", "Pass the value as a prepared parameter: ? or $name.")
    raise c.unexpected("a value")


def mapping(c: Cursor, depth: int = 0) -> dict[str, Any]:
    """{"k": v, …} with keys in any quotes or none."""
    c.expect_op("{")
    found: dict[str, Any] = {}
    while not c.skip_op("}"):
        if found:
            c.expect_op(",")
        key = c.token
        if key.kind not in NAMES:
            raise c.unexpected("a key")
        c.next()
        c.expect_op(":")
        _put(c, found, [key.value], value(c, depth + 1), key)
    return found


def _list(c: Cursor, close: str, depth: int) -> list[Any]:
    c.next()
    found: list[Any] = []
    while not c.skip_op(close):
        if found:
            c.expect_op(",")
        found.append(value(c, depth + 1))
    return found


def _number(c: Cursor) -> int | float:
    sign = c.next().text if c.token.kind == "op" else ""
    token = c.token
    digits = token.text.replace("_", "")
    if len(digits) > 4000:
        raise c.error("This number is too long.", "Write it in fewer digits.")
    number = int(digits, 0) if digits[:2] in ("0x", "0X") else int(digits) if digits.isdecimal() else float(digits)
    if not math.isfinite(number):
        raise c.error("This number is too large.", "Write one below 1e308.")
    c.next()
    return -number if sign == "-" else number


def _word(c: Cursor, depth: int) -> Any:
    """TRUE, NULL …; env('X'); db (SELECT …); Name(k = v, …); or words such as gpt-6-luna, text without quotes."""
    following = c.peek(1)
    if following.kind == "op" and following.text == "(":
        return _call(c, depth)
    first = last = c.next()
    while c.token.start == last.end and (c.token.kind in ("word", "number") or c.token.text in IN_WORDS):
        last = c.next()
    text = c.text[first.start : last.end]
    return CONSTANTS.get(text.upper(), text)


def _call(c: Cursor, depth: int) -> Any:
    name = c.next()
    inner = c.peek(1)
    if name.word == "ENV":
        return _env(c)
    if inner.word in QUERY_WORDS:
        return c.query(name.value)
    if inner.kind not in ("word", "quoted"):
        raise c.error(f"There is no function {name.value}() in options.", "Write a plain value, or env('NAME').", name)
    c.next()
    found: dict[str, Any] = {"type": name.value}
    while not c.skip_op(")"):
        if len(found) > 1:
            c.expect_op(",")
        key = c.token
        path = [c.identifier("a key")]
        c.expect_op("=")
        _put(c, found, path, value(c, depth + 1), key)
    return found


def _env(c: Cursor) -> Env:
    c.expect_op("(")
    name = c.token
    if name.kind not in NAMES or not name.value:
        raise c.unexpected("the name of an environment variable")
    c.next()
    c.expect_op(")")
    return Env(name.value)


def _put(c: Cursor, into: dict[str, Any], path: list[str], what: Any, at: Token) -> None:
    *outer, last = path
    for key in outer:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            raise c.error(f"'{key}' has a value already, so it cannot have parts.", "Give it once.", at)
    if last in into:
        raise c.error(f"'{'.'.join(path)}' is given twice.", "Give it once.", at)
    into[last] = what
