"""One value of a training row as messages: lists of {role, content} or {from, value}, and JSON texts of them.

`formats` calls this for the columns that may hold conversations.  What comes out are turns, or `UnreadableRow` with the
reason this row cannot be learned from; `SkippedRows` makes findings of those reasons.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import pyarrow as pa

from sqlft.data.conversations import Conversation, Finding, Turn, report_finding
from sqlft.data.prompts import to_text, to_text_column
from sqlft.errors import DataError, did_you_mean

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "ai": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "tool_response": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")
"""Roles of messages whose content is a call of a tool, as ShareGPT has them."""
TOOL_CALL_KEYS = ("tool_calls", "function_call")
TOOLS = "tools"
"""The column with the tools that a conversation may call: JSON schemas of functions, as OpenAI has them."""
MEDIA_KEYS = ("image", "images", "audio", "audios", "video", "videos")
"""Keys of a message, and columns beside messages, that hold what is no text."""
REASONING = "reasoning"
"""The column, or the key of a message, with what is thought before an answer."""
TEXT_PARTS = ("text", "input_text", "output_text")
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
JSON_STARTS = frozenset("[{ \n\t\r")
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
_FINDINGS: Mapping[str, tuple[str, str]] = {
    "bad_messages": ("{n} left out that hold no list of {role, content}, nor JSON of one{details}.",
        "Mend or filter out these rows."),
    "unknown_role": ("{n} left out with a role that is not known: {details}.",
        "A role is system, user, assistant or tool; rename or filter out others."),
    "bad_tools": ("{n} left out with tools, or calls of them, that are no JSON of functions with a name ({details}).",
        'A call is {"function": {"name": …, "arguments": …}}, tools are a list of {"function": {"name": …}}.'),
    "other_parts": ("{n} left out with parts that are no text ({details}): models here read and write text.",
        "Put text in their place, or filter these rows out."),
    "bad_weight": ("{n} left out with a weight that is neither 0 nor 1 ({details}).",
        "0 is for messages that are not to be learned, 1 or NULL for others."),
    "plain_text": ("{n} left out whose text does not tell what is asked and what is answered.",
        "SELECT the question AS prompt and the answer AS completion."),
}  # fmt: skip


class UnreadableRow(ValueError):
    """Why a row cannot be learned from; `code` is the finding's."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class SkippedRows:
    """The rows that are left out, with why, and what else reading the rows brought up."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, str]] = defaultdict(dict)
        self._findings: list[Finding] = []

    def add(self, row: int, why: UnreadableRow) -> None:
        """Count one."""
        self._rows[why.code][row] = why.detail

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Keep findings that are not of single rows."""
        self._findings += findings

    @property
    def findings(self) -> list[Finding]:
        """One for each reason, then the others."""
        return [*(f for code, rows in self._rows.items() for f in _report_skipped(code, rows)), *self._findings]


def _report_skipped(code: str, rows: Mapping[int, str]) -> list[Finding]:
    text, next_step = _FINDINGS[code]
    details = list(dict.fromkeys(d for d in rows.values() if d))
    shown = ", ".join(details[:3]) + (" …" if len(details) > 3 else "")
    if code == "bad_messages" and shown:
        shown = f" ({shown})"
    return report_finding(code, "warning", list(rows), text.replace("{details}", shown), next_step)


def parse_turns(value: object) -> tuple[Turn, ...]:
    """The messages of one row; UnreadableRow.

    >>> parse_turns([{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}])[1].role
    'assistant'
    """
    messages = parse_message_list(value)
    if messages is None:
        raise UnreadableRow("bad_messages")
    return tuple(parse_turn(m) for m in messages)


def parse_message_list(value: object) -> list[Mapping[str, object]] | None:
    """The messages in a value, with keys in small letters; None where it is no list of them."""
    value = _parse_json(value)
    if isinstance(value, Mapping):
        inner = next((value[name] for name in MESSAGE_COLUMNS if value.get(name) is not None), None)
        value = [value] if inner is None else inner
    if not isinstance(value, (list, tuple)) or not value:
        return None
    parsed = (m for m in map(_parse_json, value) if isinstance(m, Mapping))
    messages: list[Mapping[str, object]] = [{str(k).lower(): v for k, v in m.items()} for m in parsed]
    return messages if len(messages) == len(value) and all(map(_is_message, messages)) else None


def parse_spoken_messages(value: object) -> list[Mapping[str, object]] | None:
    """Messages where a text is possible too: with a known role, or nearly one; other JSON is a text."""
    messages = parse_message_list(value)
    roles = [to_text(m.get("role") or m.get("from")).strip().lower() for m in messages or ()]
    return messages if any(role in ROLES or did_you_mean(role, ROLES) for role in roles) else None


def _parse_json(value: object) -> object:
    """What a JSON text holds; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        return None


def _is_message(message: Mapping[str, object]) -> bool:
    has_keys = any(a in message and b in message for a, b in MESSAGE_KEYS)
    return has_keys or ("role" in message and any(key in message for key in TOOL_CALL_KEYS))


def parse_turn(message: Mapping[str, object]) -> Turn:
    """One message of a `parse_message_list`; UnreadableRow."""
    role = message.get("role") if message.get("role") is not None else message.get("from")
    if media := [name for name in MEDIA_KEYS if message.get(name)]:
        raise UnreadableRow("other_parts", media[0])
    content = message.get("content") if message.get("content") is not None else message.get("value")
    calls = next((message[name] for name in TOOL_CALL_KEYS if message.get(name)), None)
    if to_text(role).strip().lower() in CALL_ROLES:
        content, calls = None, content
    reasoning = message.get("reasoning_content") or message.get(REASONING)
    optional = (message.get("weight"), message.get("name"), reasoning, calls, message.get("tool_call_id"))
    return build_turn(to_text(role), _join_parts(content), *optional)


def build_turn(
    role: str,
    content: str,
    weight: object = None,
    name: object = None,
    reasoning: object = None,
    tool_calls: object = None,
    tool_call_id: object = None,
) -> Turn:
    """A turn of the fields of a message; UnreadableRow."""
    role = _parse_role(role)
    thoughts = to_text(reasoning).strip() if role == "assistant" else ""
    calls = _parse_functions(tool_calls, "a call", _format_call) if role == "assistant" else None
    answered = to_text(tool_call_id) if role == "tool" else ""
    return Turn(role, content, _parse_weight(weight), to_text(name) or None, thoughts or None, calls, answered or None)


def parse_tools(value: object) -> str | None:
    """The tools of a conversation as OpenAI's JSON, None where there are none; UnreadableRow.

    >>> parse_tools([{"name": "add", "parameters": None}])
    '[{"type": "function", "function": {"name": "add"}}]'
    """
    return _parse_functions(value, "a tool", _format_tool)


def _parse_functions(value: object, what: str, form: Callable[[Mapping[str, object]], dict[str, object]]) -> str | None:
    """A list of functions with a name, or one of them, in OpenAI's form; they may lack what is around them there."""
    parsed = _parse_json(value) if value != "" else None
    items = [parsed] if isinstance(parsed, Mapping) else parsed
    if (items is None and value in (None, "")) or items == []:
        return None
    if not isinstance(items, (list, tuple)):
        raise UnreadableRow("bad_tools", f"{what} is {to_text(value)[:40]!r}")
    made = []
    for item in map(_parse_json, items):
        function = _parse_json(item.get("function", item)) if isinstance(item, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(item, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise UnreadableRow("bad_tools", f"{what} is {to_text(item)[:40]!r}")
        has_id = isinstance(item.get("id"), str)
        made.append({**({"id": item["id"]} if has_id else {}), "type": "function", "function": form(function)})
    return json.dumps(made, ensure_ascii=False)


def _format_call(function: Mapping[str, object]) -> dict[str, object]:
    """With the arguments as a text of JSON."""
    given = function.get("arguments", function.get("parameters"))
    text = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    if not isinstance(_parse_json(text), Mapping):
        raise UnreadableRow("bad_tools", f"the arguments of a call are {text[:40]!r}")
    return {"name": function["name"], "arguments": text}


def _format_tool(function: Mapping[str, object]) -> dict[str, object]:
    """Without NULLs: keys that only other rows' tools have, where DuckDB made structs of them."""
    return {name: _drop_nulls(value) for name, value in function.items() if value is not None}


def _drop_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _drop_nulls(v) for k, v in value.items() if v is not None}
    return [_drop_nulls(v) for v in value] if isinstance(value, (list, tuple)) else value


def _parse_role(role: str) -> str:
    role = role.strip().lower()
    known = ROLES.get(role)
    if known is None:
        near = did_you_mean(role[:40], ROLES).strip()
        raise UnreadableRow("unknown_role", f"{role[:40]!r}{f' ({near})' if near else ''}")
    return known


def _parse_weight(value: object) -> int:
    if value is None or value == "":
        return 1
    number = _parse_number(value)
    if number not in (0, 1):
        raise UnreadableRow("bad_weight", to_text(value)[:40])
    return int(number)


def _parse_number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, (str, int, float, Decimal)) else None
    except ValueError:
        return None


def _join_parts(value: object) -> str:
    """A message's text, its parts joined; UnreadableRow where one of them is no text."""
    parts = value if isinstance(value, list) else [value]
    if not any(isinstance(p, Mapping) and ("type" in p or "text" in p) for p in parts):
        return to_text(value)
    return "".join(_read_part(p) for p in parts)


def _read_part(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UnreadableRow("other_parts", type(part).__name__)
    kind = to_text(part.get("type") or ("text" if part.get("text") is not None else next(iter(part), "")))
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise UnreadableRow("other_parts", kind[:40])
    return to_text(part["text"])


def parse_answer(value: object) -> str:
    """The text of an answer: of messages the last one of the assistant; UnreadableRow."""
    if isinstance(value, str) and value[:1] not in JSON_STARTS:
        return to_text(value)
    messages = parse_spoken_messages(value)
    return to_text(value) if messages is None else find_last_answer([parse_turn(m) for m in messages])


def find_last_answer(turns: Sequence[Turn]) -> str:
    """The assistant's last message."""
    return next((t.content or t.tool_calls or "" for t in reversed(turns) if t.role == "assistant"), "")


CHAT_COLUMNS = ("chat_id", "conversation_id", "thread_id")
ORDER_COLUMNS = (
    "message_id", "message_index", "message_number", "turn", "turn_id", "turn_index", "turn_number", "position", "seq",
)  # fmt: skip


class RowColumns:
    """Columns by name in any case; of several of one name the first."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self._columns = {name.lower(): i for i, name in reversed(list(enumerate(rows.column_names)))}
        self.count: int = rows.num_rows
        self.names = set(self._columns)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._columns

    def column(self, name: str) -> pa.ChunkedArray:
        """The column of that name."""
        return self._rows.column(self._columns[name.lower()])

    def first_of(self, names: Iterable[str]) -> pa.ChunkedArray | None:
        """The first of these columns that there is."""
        return next((self.column(n) for n in names if n in self), None)

    def values(self, name: str, most: int | None = None) -> list[object]:
        """Lists and structs as Python has them, all else as text; with `most` the first of them."""
        column = self.column(name).slice(0, most)
        nested = pa.types.is_nested(column.type)
        return list(column.to_pylist(maps_as_pydicts="lossy") if nested else to_text_column(column).to_pylist())

    def texts(self, names: Iterable[str]) -> list[str]:
        """Of the first of these columns that there is; '' for each row without one."""
        column = self.first_of(names)
        return [""] * self.count if column is None else list(to_text_column(column).to_pylist())


def read_roles(
    rows: RowColumns, contents: Sequence[object], users: Sequence[object], skipped: SkippedRows
) -> list[Conversation]:
    """Conversations of rows with a role and a content; `users` are the contents rendered as prompts.

    One that has a message which cannot be read is left out as a whole.
    """
    roles = to_text_column(rows.column("role")).to_pylist()
    optional = [
        rows.column(name).to_pylist() if name in rows else [None] * rows.count
        for name in ("weight", "name", REASONING, "tool_calls", "tool_call_id")
    ]
    turns: list[Turn | UnreadableRow] = []
    for role, content, user, *fields in zip(roles, contents, users, *optional, strict=True):
        try:
            turns.append(_build_role_turn(role, content, user, *fields))
        except UnreadableRow as why:
            turns.append(why)
    conversations = []
    for group in _group_rows(rows, roles, skipped):
        messages = [turns[i] for i in group]
        if unread := next((m for m in messages if isinstance(m, UnreadableRow)), None):
            skipped.add(group[0] + 1, unread)
        else:
            conversations.append(Conversation(group[0] + 1, tuple(m for m in messages if isinstance(m, Turn))))
    return conversations


def _build_role_turn(role: str, content: object, user: object, *fields: object) -> Turn:
    if role.strip().lower() in CALL_ROLES:
        return parse_turn({"role": role, "content": content, "weight": fields[0]})
    turn = build_turn(role, "", *fields)
    text = user if turn.role == "user" else content
    return turn._replace(content=text) if isinstance(text, str) else parse_turn({"role": role, "content": text})


def _group_rows(rows: RowColumns, roles: Sequence[str], skipped: SkippedRows) -> list[list[int]]:
    """The rows of each conversation."""
    chats, order = rows.first_of(CHAT_COLUMNS), rows.first_of(ORDER_COLUMNS)
    if chats is not None:
        return _group_by_chat(chats.to_pylist(), None if order is None else order.to_pylist(), skipped)
    return _group_by_system_row([r.strip().lower() for r in roles], _sort_rows(order, rows.count), skipped)


def _sort_rows(order: pa.ChunkedArray | None, count: int) -> list[int]:
    """The rows in the order of their message_id, which must be unique."""
    if order is None:
        return list(range(count))
    keys = [_sort_key(v) for v in order.to_pylist()]
    if len(set(keys)) < count:
        raise DataError(
            "The messages of the training query are numbered, but several have the same number or none, and no column "
            "says which conversation each is of.",
            "Give that column too, AS chat_id; or leave the numbers out, and ORDER BY what puts rows in order.",
        )
    return sorted(range(count), key=keys.__getitem__)


def _group_by_chat(chats: Sequence[object], order: Sequence[object] | None, skipped: SkippedRows) -> list[list[int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    for i, chat in enumerate(chats):
        groups[chat if chat is None or isinstance(chat, (str, int)) else str(chat)].append(i)
    lost = [i + 1 for i in groups.pop(None, ())]
    what_to_do = "Give each message the chat_id of its conversation."
    text = f"{len(lost):,} rows without a chat_id left out."
    skipped.add_findings(report_finding("no_chat_id", "warning", lost, text, what_to_do))
    if order is not None:
        for group in groups.values():
            group.sort(key=lambda i: _sort_key(order[i]))
    return list(groups.values())


def _sort_key(value: object) -> tuple[int, float, str]:
    """Numbers by size, also where they are text; others by their text; NULL last."""
    if value is None:
        return 2, 0.0, ""
    number = _parse_number(value)
    return (1, 0.0, str(value)) if number is None else (0, number, "")


def _group_by_system_row(roles: Sequence[str], order: Sequence[int], skipped: SkippedRows) -> list[list[int]]:
    """A conversation starts at each system row; where there is none, at each user row behind an answer."""
    has_system = "system" in roles
    groups: list[list[int]] = []
    before = ""
    for i in order:
        role = ROLES.get(roles[i], roles[i])
        starts = role == "system" if has_system else role == "user" and before == "assistant"
        if starts or not groups:
            groups.append([])
        groups[-1].append(i)
        before = role
    if not has_system and len(groups) > 1:
        text = (
            "{n} made, one at each user row behind an answer, for there is neither a system row nor a chat_id to tell "
            "where one starts."
        )
        starts_at = [g[0] + 1 for g in groups]
        what_to_do = "Add a chat_id to keep longer ones together."
        skipped.add_findings(report_finding("no_system_rows", "info", starts_at, text, what_to_do))
    return groups
