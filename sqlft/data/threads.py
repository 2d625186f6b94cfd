"""Messages that are one row each -> conversations: by chat_id, in the order of message_id, or by their system rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sqlft.data.findings import Conversation, Finding, Turn, finding
from sqlft.data.messages import ROLES, Left, Unread, made, turn_of
from sqlft.data.values import text_column, text_of
from sqlft.errors import DataError

CHAT_COLUMNS = ("chat_id", "conversation_id", "thread_id")
ORDER_COLUMNS = (
    "message_id", "message_index", "message_number", "turn", "turn_id", "turn_index", "turn_number", "position", "seq",
)  # fmt: skip


class Columns(Protocol):
    """What this file needs of the rows."""

    count: int

    def column(self, name: str) -> Any:
        """By name."""

    def first_of(self, names: Sequence[str]) -> Any | None:
        """The first of these that there is."""


def read_roles(
    rows: Columns, contents: Sequence[Any], asked: Sequence[Any], left: Left
) -> tuple[list[Conversation], list[Finding]]:
    """Conversations of rows with a role and a content; `asked` are the contents as users say them.

    One that has a message which cannot be read is left out as a whole.
    """
    roles = text_column(rows.column("role")).to_pylist()
    weights, names = (_listed(rows.first_of((name,)), rows.count) for name in ("weight", "name"))
    turns: list[Turn | Unread] = []
    for role, content, user, weight, name in zip(roles, contents, asked, weights, names, strict=True):
        try:
            turns.append(_turn(role, content, user, weight, name))
        except Unread as why:
            turns.append(why)
    groups, findings = _grouped(rows, roles)
    found = []
    for group in groups:
        read = [turns[i] for i in group]
        if unread := [t for t in read if isinstance(t, Unread)]:
            left.add(group[0] + 1, unread[0])
        else:
            found.append(Conversation(group[0] + 1, tuple(t for t in read if isinstance(t, Turn))))
    return found, findings


def _turn(role: str, content: Any, user: Any, weight: Any, name: Any) -> Turn:
    turn = made(role, "", weight, name)
    said = user if turn.role == "user" else content
    return turn._replace(content=said) if isinstance(said, str) else turn_of({"role": role, "content": said})


def _grouped(rows: Columns, roles: list[str]) -> tuple[list[list[int]], list[Finding]]:
    chats, order = rows.first_of(CHAT_COLUMNS), rows.first_of(ORDER_COLUMNS)
    if chats is not None:
        return _by_chat(chats.to_pylist(), None if order is None else order.to_pylist())
    return _by_system([r.strip().lower() for r in roles], _ordered(order, rows.count))


def _listed(column: Any | None, count: int) -> list[Any]:
    return [None] * count if column is None else list(column.to_pylist())


def _ordered(order: Any | None, count: int) -> list[int]:
    """The rows in the order of their message_id, which tells it only where each has one of its own."""
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


def _by_chat(chats: list[Any], order: list[Any] | None) -> tuple[list[list[int]], list[Finding]]:
    groups: dict[Any, list[int]] = {}
    lost = []
    for i, chat in enumerate(chats):
        if chat is None:
            lost.append(i + 1)
        else:
            groups.setdefault(chat if isinstance(chat, (str, int)) else text_of(chat), []).append(i)
    if order is not None:
        for group in groups.values():
            group.sort(key=lambda i: _sort_key(order[i]))
    text = f"{len(lost):,} rows without a chat_id left out."
    what_to_do = "Give each message the chat_id of its conversation."
    return list(groups.values()), [finding("no_chat_id", "warning", lost, text, what_to_do)] if lost else []


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers by size, also where they are text; others by their text; NULL last."""
    if value is None:
        return 2, 0.0, ""
    try:
        return 0, float(value), ""
    except (TypeError, ValueError):
        return 1, 0.0, text_of(value)


def _by_system(roles: list[str], order: list[int]) -> tuple[list[list[int]], list[Finding]]:
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
    if has_system or len(groups) < 2:
        return groups, []
    text = (
        "{n} made, one at each user row behind an answer, for there is neither a system row nor a chat_id to tell "
        "where one starts."
    )
    what_to_do = "Add a chat_id to keep longer ones together."
    return groups, [finding("no_system_rows", "info", [g[0] + 1 for g in groups], text, what_to_do)]
