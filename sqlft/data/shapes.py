"""Training rows to conversations, the shape recognised by its columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from sqlft.data.findings import Conversation, Finding, Turn, finding
from sqlft.data.outputs import Misfit, Outputs
from sqlft.data.prompts import Prompt
from sqlft.data.values import text_column, text_of
from sqlft.errors import DataError, did_you_mean

MESSAGES = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])
CHAT_COLUMNS = ("chat_id", "conversation_id", "thread_id")
ORDER_COLUMNS = ("message_id", "message_index", "turn")
PAIRS = (("chosen", "rejected"), ("preferred", "non_preferred"), ("preferred_output", "non_preferred_output"))
"""Names of the better and the worse answer, for training that learns from pairs."""
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "ai": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
SHOWN_COLUMNS = 20
CHUNK_CHARACTERS = 100_000_000
"""A batch's texts must stay below Arrow's 2 GB."""


class Recognised(NamedTuple):
    """The conversations in the order of the rows, and what reading them brought up."""

    shape: str
    conversations: list[Conversation]
    findings: list[Finding]


def recognise(rows: pa.Table, prompt: Prompt, targets: Sequence[str], outputs: Outputs | None = None) -> Recognised:
    """Conversations of `rows`: DataError with the shapes that fit if its columns make none.

    With typed `outputs` an answer is JSON, made of their columns; what does not fit is left out and counted.
    """
    columns = {name.lower(): i for i, name in reversed(list(enumerate(rows.column_names)))}
    typed = outputs if outputs is not None and outputs.schema is not None else None
    answers = [typed.names] if typed is not None and len(typed.names) > 1 else [(target,) for target in targets]
    for shape, needed, read in _shapes(prompt, answers, typed):
        if all(name.lower() in columns for name in needed):
            known = _Rows(rows, columns)
            found, findings = read(known, prompt, needed[-1])
            found = _with_rejected(found, known) if shape != "role, content" else found
            if typed is not None and shape != "inputs":
                found, more = _fitting(found, typed)
                findings = findings + more
            return Recognised(shape, [_with_system(c, prompt.system) for c in found], findings)
    raise _no_shape(rows, prompt, answers[0])


def table_of(conversations: Sequence[Conversation]) -> pa.Table:
    """A table of messages: list<struct<role: string, content: string>>; and rejected: string, if any has that."""
    batches: list[list[Conversation]] = [[]]
    size = 0
    for c in conversations:
        if size > CHUNK_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(c)
        size += sum(len(t.content) for t in c.turns)
    made = pa.Table.from_batches([_batch(b) for b in batches], MESSAGES)
    if all(c.rejected is None for c in conversations):
        return made
    return made.append_column("rejected", pa.array([c.rejected for c in conversations], pa.string()))


class _Rows:
    """Columns by lower-case name."""

    def __init__(self, rows: pa.Table, columns: Mapping[str, int]) -> None:
        self._rows, self._columns = rows, columns
        self.count = rows.num_rows

    def column(self, name: str) -> Any:
        return self._rows.column(self._columns[name.lower()])

    def first_of(self, names: Iterable[str]) -> Any | None:
        return next((self.column(n) for n in names if n in self._columns), None)


Read = Callable[[_Rows, Prompt, str], tuple[list[Conversation], list[Finding]]]


def _shapes(
    prompt: Prompt, answers: Sequence[tuple[str, ...]], typed: Outputs | None
) -> Iterator[tuple[str, tuple[str, ...], Read]]:
    """In order of precedence: the model's own columns are what a user most likely means."""
    inputs = {name.lower() for name in prompt.inputs}
    for names in answers:
        if not inputs & {name.lower() for name in names}:
            read = _read_inputs if typed is None else partial(_read_typed, names=names, outputs=typed)
            yield "inputs", (*prompt.inputs, *names), read
    yield from (("inputs", (*prompt.inputs, worse, better), _read_inputs) for better, worse in PAIRS)
    yield "role, content", ("role", "content"), _read_roles
    yield "messages", ("messages",), _read_messages
    yield "prompt, completion", ("prompt", "completion"), _read_completions
    yield from (("prompt, completion", ("prompt", worse, better), _read_completions) for better, worse in PAIRS)


def _no_shape(rows: pa.Table, prompt: Prompt, answers: Sequence[str]) -> DataError:
    names = rows.column_names
    shown = ", ".join(names[:SHOWN_COLUMNS]) + (
        f" … and {len(names) - SHOWN_COLUMNS:,} more" if len(names) > SHOWN_COLUMNS else ""
    )
    own = (*prompt.inputs, *answers)
    lower = {n.lower() for n in names}
    missing = [n for n in own if n.lower() not in lower]
    near = did_you_mean(missing[0], names) if missing and len(missing) < len(own) else ""
    return DataError(
        f"The training query gives the columns {shown}; that is none of the shapes to train from."
        f" Of this model's own columns it lacks {', '.join(missing)}.{near}",
        "Let the query give one of:\n"
        f"  {', '.join(own)} - this model's inputs and its output, a row an example\n"
        "  role, content - messages; a new conversation at each system row, or by chat_id (in order of message_id)\n"
        "  messages - a conversation a row, as a list of {role, content} or as JSON text\n"
        "  prompt, completion - a row an example\n"
        "  a column rejected beside the answer holds a worse one, for training that learns from pairs\n"
        f"Rename columns with AS: SELECT my_column AS {own[0]}, …",
    )


def _with_rejected(conversations: list[Conversation], rows: _Rows) -> list[Conversation]:
    """With the worse answers of their rows, where there is a column of them."""
    column = rows.first_of(worse for _, worse in PAIRS)
    if column is None:
        return conversations
    texts = text_column(column).to_pylist()
    return [c._replace(rejected=texts[c.row - 1]) for c in conversations]


def _with_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or any(t.role == "system" for t in conversation.turns):
        return conversation
    return conversation._replace(turns=(Turn("system", system), *conversation.turns))


def _read_inputs(rows: _Rows, prompt: Prompt, target: str) -> tuple[list[Conversation], list[Finding]]:
    users = prompt.render_column({name: rows.column(name) for name in prompt.inputs}).to_pylist()
    answers = text_column(rows.column(target)).to_pylist()
    asked = _any_valid([rows.column(name) for name in prompt.inputs])
    return [
        Conversation(i, (Turn("user", user if known else ""), Turn("assistant", answer)))
        for i, (user, answer, known) in enumerate(zip(users, answers, asked, strict=True), 1)
    ], []


def _read_typed(
    rows: _Rows, prompt: Prompt, target: str, names: Sequence[str], outputs: Outputs
) -> tuple[list[Conversation], list[Finding]]:
    """Answers as JSON, written as the model is to write them."""
    found, _ = _read_inputs(rows, prompt, target)
    columns = [rows.column(name).to_pylist() for name in names]
    kept: list[Conversation] = []
    unfit: dict[int, str] = {}
    for conversation, values in zip(found, zip(*columns, strict=True), strict=True):
        try:
            answer = "" if all(v is None for v in values) else outputs.write(values)
            kept.append(conversation._replace(turns=(conversation.turns[0], Turn("assistant", answer))))
        except Misfit as e:
            unfit[conversation.row] = str(e)
    return kept, _unfit(unfit, "Cast the column in the query, or filter these rows out.")


def _fitting(conversations: Sequence[Conversation], outputs: Outputs) -> tuple[list[Conversation], list[Finding]]:
    """Those whose last answer has the model's form."""
    kept: list[Conversation] = []
    unfit: dict[int, str] = {}
    for c in conversations:
        try:
            answer = next((t.content for t in reversed(c.turns) if t.role == "assistant"), "")
            if answer.strip():
                outputs.parse(answer)
            kept.append(c)
        except Misfit as e:
            unfit[c.row] = str(e)
    columns = ", ".join(outputs.names)
    return kept, _unfit(unfit, f"Let the answers be JSON that fits the schema, or give the columns {columns}.")


def _unfit(unfit: Mapping[int, str], next_step: str) -> list[Finding]:
    if not unfit:
        return []
    first, why = next(iter(unfit.items()))
    text = f"{{n}} left out, whose answer does not have the model's types; row {first:,}: {_plain(why)} {next_step}"
    return [finding("unfit_answer", "warning", list(unfit), text)]


def _plain(text: str) -> str:
    return f"{text.rstrip('.').replace('{n}', '{ n}')}."


def _read_completions(rows: _Rows, prompt: Prompt, target: str) -> tuple[list[Conversation], list[Finding]]:
    users, answers = text_column(rows.column("prompt")).to_pylist(), text_column(rows.column(target)).to_pylist()
    pairs = zip(users, answers, strict=True)
    found = [Conversation(i, (Turn("user", u), Turn("assistant", a))) for i, (u, a) in enumerate(pairs, 1)]
    return found, _unused_template(prompt, rows.count)


def _read_messages(rows: _Rows, prompt: Prompt, target: str) -> tuple[list[Conversation], list[Finding]]:
    column = rows.column("messages")
    values = (
        column.to_pylist(maps_as_pydicts="lossy")
        if pa.types.is_nested(column.type)
        else text_column(column).to_pylist()
    )
    found: list[Conversation] = []
    bad: list[int] = []
    for i, value in enumerate(values, 1):
        turns = _turns(value, i)
        if turns is None:
            bad.append(i)
        else:
            found.append(Conversation(i, turns))
    findings = _unused_template(prompt, rows.count)
    if bad:
        text = "{n} left out: messages is no list of {role, content}, nor JSON of one."
        findings.append(finding("bad_messages", "warning", bad, text, "Mend or filter out these rows."))
    return found, findings


def _read_roles(rows: _Rows, prompt: Prompt, target: str) -> tuple[list[Conversation], list[Finding]]:
    roles = [_role(r, i) for i, r in enumerate(text_column(rows.column("role")).to_pylist(), 1)]
    contents = text_column(rows.column("content")).to_pylist()
    is_rendered = [n.lower() for n in prompt.inputs] == ["content"]
    if is_rendered:
        rendered = prompt.render_column({prompt.inputs[0]: rows.column("content")}).to_pylist()
        contents = [r if role == "user" else c for r, role, c in zip(rendered, roles, contents, strict=True)]
    turns = [Turn(r, c) for r, c in zip(roles, contents, strict=True)]
    chats = rows.first_of(CHAT_COLUMNS)
    order = rows.first_of(ORDER_COLUMNS)
    if chats is not None:
        groups, more = _by_chat(chats.to_pylist(), order.to_pylist() if order is not None else None)
    else:
        groups, more = _by_system(roles)
    findings = [] if is_rendered else _unused_template(prompt, len(groups))
    return [Conversation(g[0] + 1, tuple(turns[i] for i in g)) for g in groups], findings + more


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


def _by_system(roles: list[str]) -> tuple[list[list[int]], list[Finding]]:
    """A conversation starts at each system row; where there is none, at each user row behind an answer."""
    has_system = "system" in roles
    groups: list[list[int]] = []
    for i, role in enumerate(roles):
        starts = role == "system" if has_system else role == "user" and roles[i - 1] == "assistant"
        if starts or not groups:
            groups.append([])
        groups[-1].append(i)
    if has_system or len(groups) < 2:
        return groups, []
    text = (
        "{n} made, one at each user row behind an answer, for there is neither a system row nor a chat_id to tell "
        "where one starts."
    )
    what_to_do = "Add a chat_id to keep longer ones together."
    return groups, [finding("no_system_rows", "info", [g[0] + 1 for g in groups], text, what_to_do)]


def _role(role: str, row: int) -> str:
    known = ROLES.get(role.strip().lower())
    if known is None:
        raise DataError(
            f"Row {row:,} of the training query has the role {role[:40]!r}.{did_you_mean(role[:40], ROLES)}",
            "A role is system, user or assistant; rename or filter out others.",
        )
    return known


def _turns(value: Any, row: int) -> tuple[Turn, ...] | None:
    """The messages of one row, None if that is no list of messages."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping):
        value = value.get("messages")
    if not isinstance(value, (list, tuple)) or not value:
        return None
    turns = [_turn(message, row) for message in value]
    return None if any(t is None for t in turns) else tuple(t for t in turns if t is not None)


def _turn(message: Any, row: int) -> Turn | None:
    if isinstance(message, str):  # a list of JSON texts
        try:
            message = json.loads(message)
        except (ValueError, RecursionError):
            return None
    if not isinstance(message, Mapping):
        return None
    fields = {str(k).lower(): v for k, v in message.items()}
    if "role" not in fields or "content" not in fields:
        return None
    return Turn(_role(text_of(fields["role"]), row), _content(fields["content"]))


def _content(value: Any) -> str:
    """A message's text; the parts of a list of ``{"type": "text", "text": …}`` joined."""
    if isinstance(value, list) and value and all(isinstance(p, Mapping) and "text" in p for p in value):
        return "".join(text_of(p["text"]) for p in value)
    return text_of(value)


def _any_valid(columns: Sequence[Any]) -> list[bool]:
    """Whether any of the columns has a value, row by row."""
    masks = [c.is_valid().to_pylist() for c in columns]
    return [any(m) for m in zip(*masks, strict=True)]


def _unused_template(prompt: Prompt, count: int) -> list[Finding]:
    if prompt.is_bare:
        return []
    text = (
        "{n} holding whole prompts: the prompt_template is not put around them in training, but it is when the model "
        "is asked."
    )
    what_to_do = f"Train on the columns {', '.join(prompt.inputs)} and the output to have it in both."
    return [finding("template_unused", "warning", [], text, what_to_do, count=count)]


def _batch(conversations: Sequence[Conversation]) -> pa.RecordBatch:
    roles = pa.array([t.role for c in conversations for t in c.turns], pa.string())
    contents = pa.array([t.content for c in conversations for t in c.turns], pa.string())
    offsets = [0]
    for c in conversations:
        offsets.append(offsets[-1] + len(c.turns))
    turns = pa.StructArray.from_arrays([roles, contents], fields=list(MESSAGES.field(0).type.value_type))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), turns)
    return pa.RecordBatch.from_arrays([lists.cast(MESSAGES.field(0).type)], schema=MESSAGES)
