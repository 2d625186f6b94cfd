"""Training rows to conversations, their format recognised by the columns: messages, prompts, transcripts, pairs.

`prepare` calls `recognise` with the rows of a query.  What cannot be read costs its row, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from sqlft.data.conversations import Conversation, Finding, Turn, build_finding
from sqlft.data.messages import (
    MEDIA_KEYS,
    MESSAGE_COLUMNS,
    ROLES,
    SkippedRows,
    UnreadableRow,
    find_last_answer,
    parse_answer,
    parse_message_list,
    parse_spoken_messages,
    parse_turn,
    parse_turns,
    read_roles,
)
from sqlft.data.outputs import OutputMismatch, Outputs
from sqlft.data.prompts import Prompt, to_text, to_text_column
from sqlft.errors import DataError, did_you_mean

PREFERENCE_COLUMNS = (
    ("chosen", "rejected"),
    ("preferred", "non_preferred"),
    ("preferred_output", "non_preferred_output"),
)
"""Names of the better and the worse answer, for training that learns from pairs."""
REJECTED_COLUMNS = tuple(worse for _, worse in PREFERENCE_COLUMNS)
SIDE_COLUMNS = frozenset(
    {*REJECTED_COLUMNS, *(better for better, _ in PREFERENCE_COLUMNS), "system", "tools", "weight", "id", *MEDIA_KEYS}
)
"""Columns that may stand beside conversations, and are no prompt of themselves."""
SAMPLE_ROWS = 100
"""Rows that tell what a column holds."""
SHOWN_COLUMNS = 20


class RecognisedRows(NamedTuple):
    """The conversations in the order of the rows, and what reading them brought up."""

    shape: str
    conversations: list[Conversation]
    findings: list[Finding]


def recognise(rows: pa.Table, prompt: Prompt, targets: Sequence[str], outputs: Outputs | None = None) -> RecognisedRows:
    """Conversations of `rows`: DataError with the shapes that fit if its columns make none.

    With typed `outputs` an answer is JSON, made of their columns; what does not fit is left out and counted.
    """
    known = RowColumns(rows)
    typed = outputs if outputs is not None and outputs.schema is not None else None
    answers = [typed.names] if typed is not None and len(typed.names) > 1 else [(target,) for target in targets]
    for shape, needed, read in (*_list_model_shapes(prompt, answers, typed), *SHAPES):
        if all(name in known for name in needed) and _has_shape(known, needed, read):
            skipped = SkippedRows()
            found, findings = read(known, prompt, needed[-1], skipped)
            if shape != "role, content":
                found = _add_rejected(
                    found, known, skipped, _parse_rejected if read is _read_whole_pairs else parse_answer
                )
            if typed is not None and shape != "inputs":
                found, more = _canonicalise_answers(found, typed)
                findings = findings + more
            found = [_add_system(c, prompt.system) for c in found]
            return RecognisedRows(shape, found, [*skipped.findings, *findings])
    raise _unknown_shape_error(rows, prompt, answers[0])


def is_known_shape(rows: pa.Table) -> bool:
    """Whether the columns are a shape by themselves, whatever the model."""
    known = RowColumns(rows)
    return any(all(n in known for n in needed) and _has_shape(known, needed, read) for _, needed, read in SHAPES)


def _has_shape(rows: RowColumns, needed: Sequence[str], read: ShapeReader) -> bool:
    """Whether columns whose names may mean something else hold what the shape is of, where there are others."""
    tests: dict[ShapeReader, Callable[[Any], bool]] = {
        _read_messages: lambda value: parse_message_list(value) is not None,
        _read_whole_pairs: lambda value: parse_message_list(value) is not None or is_transcript(to_text(value)),
        _read_transcripts: lambda value: is_transcript(to_text(value)),
    }
    holds = tests.get(read)
    if holds is None or needed[-1] == "messages" or rows.names <= {*needed, *SIDE_COLUMNS}:
        return True
    return any(holds(value) for value in rows.values(needed[-1], SAMPLE_ROWS) if value)


class RowColumns:
    """Columns by name in any case; of several of one name the first."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self._columns = {name.lower(): i for i, name in reversed(list(enumerate(rows.column_names)))}
        self.count = rows.num_rows
        self.names = set(self._columns)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._columns

    def column(self, name: str) -> Any:
        """A pa.ChunkedArray."""
        return self._rows.column(self._columns[name.lower()])

    def first_of(self, names: Iterable[str]) -> Any | None:
        """The first of these columns that there is."""
        return next((self.column(n) for n in names if n in self), None)

    def values(self, name: str, most: int | None = None) -> list[Any]:
        """Lists and structs as Python has them, all else as text; with `most` the first of them."""
        column = self.column(name).slice(0, most)
        nested = pa.types.is_nested(column.type)
        return list(column.to_pylist(maps_as_pydicts="lossy") if nested else to_text_column(column).to_pylist())

    def texts(self, names: Iterable[str]) -> list[str]:
        """Of the first of these columns that there is; '' for each row without one."""
        column = self.first_of(names)
        return [""] * self.count if column is None else list(to_text_column(column).to_pylist())


ShapeReader = Callable[[RowColumns, Prompt, str, SkippedRows], tuple[list[Conversation], list[Finding]]]
RowShape = tuple[str, tuple[str, ...], ShapeReader]


def _list_model_shapes(prompt: Prompt, answers: Sequence[tuple[str, ...]], typed: Outputs | None) -> Iterator[RowShape]:
    """The model's own columns are what a user most likely means."""
    inputs = {name.lower() for name in prompt.inputs}
    for names in answers:
        if not inputs & {name.lower() for name in names}:
            read = _read_inputs if typed is None else partial(_read_typed, names=names, outputs=typed)
            yield "inputs", (*prompt.inputs, *names), read
    yield from (("inputs", (*prompt.inputs, worse, better), _read_inputs) for better, worse in PREFERENCE_COLUMNS)


def _unknown_shape_error(rows: pa.Table, prompt: Prompt, answers: Sequence[str]) -> DataError:
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
        f"  {', '.join(own)} - this model's inputs and its output, one example per row\n"
        "  role, content - messages; a new conversation at each system row, or by chat_id (in order of message_id)\n"
        "  messages, or conversations - one conversation per row, as a list of {role, content} or {from, value}, or as "
        "JSON text\n"
        "  prompt, completion - one example per row; so are instruction, input, output\n"
        "  text - one conversation per row, with the marks of a chat template\n"
        "  a column rejected beside the answer holds a worse one, for training that learns from pairs\n"
        f"Rename columns with AS: SELECT my_column AS {own[0]}, …",
    )


def _read_inputs(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    users = prompt.render_column({name: rows.column(name) for name in prompt.inputs}).to_pylist()
    answers = rows.values(target)
    asked = _find_valid_rows([rows.column(name) for name in prompt.inputs])
    found = []
    for i, (user, answer, known) in enumerate(zip(users, answers, asked, strict=True), 1):
        try:
            found.append(
                Conversation(i, (Turn("user", user if known else ""), Turn("assistant", parse_answer(answer))))
            )
        except UnreadableRow as why:
            skipped.add(i, why)
    return found, []


def _read_typed(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows, names: Sequence[str], outputs: Outputs
) -> tuple[list[Conversation], list[Finding]]:
    """Answers as JSON, written as the model is to write them."""
    users = prompt.render_column({name: rows.column(name) for name in prompt.inputs}).to_pylist()
    asked = _find_valid_rows([rows.column(name) for name in prompt.inputs])
    columns = [rows.column(name).to_pylist() for name in names]
    kept: list[Conversation] = []
    unfit: dict[int, str] = {}
    for i, (user, known, values) in enumerate(zip(users, asked, zip(*columns, strict=True), strict=True), 1):
        try:
            answer = "" if all(v is None for v in values) else outputs.write(values)
            kept.append(Conversation(i, (Turn("user", user if known else ""), Turn("assistant", answer))))
        except OutputMismatch as e:
            unfit[i] = str(e)
    return kept, _report_mismatches(unfit, "Cast the column in the query, or filter these rows out.")


def _read_messages(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    """Whole conversations, with a better answer behind them where there is a column of such."""
    better = next((name for name, _ in PREFERENCE_COLUMNS if name in rows), None)
    answers = rows.values(better) if better else [None] * rows.count

    def read(i: int, value: Any) -> tuple[Turn, ...]:
        turns = parse_turns(value)
        return turns if answers[i] is None else _append_answer(turns, answers[i])

    return _read_each(rows, target, skipped, read), _check_unused_template(prompt, rows.count)


def _read_completions(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    """Prompts and completions, each a text or a list of messages."""
    answers = rows.values(target)

    def read(i: int, value: Any) -> tuple[Turn, ...]:
        messages = parse_spoken_messages(value)
        asked = (Turn("user", to_text(value)),) if messages is None else tuple(parse_turn(m) for m in messages)
        return _append_answer(asked, answers[i])

    return _read_each(rows, "prompt", skipped, read), _check_unused_template(prompt, rows.count)


def _append_answer(asked: tuple[Turn, ...], answer: Any) -> tuple[Turn, ...]:
    """With an answer that is a text, messages, or the whole conversation once more."""
    messages = parse_spoken_messages(answer)
    if messages is None:
        return (*asked, Turn("assistant", to_text(answer)))
    turns = tuple(parse_turn(m) for m in messages)
    return turns if any(t.role == "user" for t in turns) else (*asked, *turns)


def _read_whole_pairs(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    """Conversations that end with the better answer, in a column without one for the prompt."""

    def read(i: int, value: Any) -> tuple[Turn, ...]:
        return parse_turns(value) if parse_message_list(value) is not None else parse_transcript(to_text(value))

    return _read_each(rows, target, skipped, read), _check_unused_template(prompt, rows.count)


def _read_instructions(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    """Alpaca's columns: the input, where there is one, stands below the instruction."""
    more, answers = rows.texts(["input"]), rows.values(target)

    def read(i: int, value: Any) -> tuple[Turn, ...]:
        user = f"{to_text(value)}\n\n{more[i]}" if more[i].strip() else to_text(value)
        return Turn("user", user), Turn("assistant", parse_answer(answers[i]))

    return _read_each(rows, "instruction", skipped, read), _check_unused_template(prompt, rows.count)


def _read_transcripts(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    def read(i: int, value: Any) -> tuple[Turn, ...]:
        return parse_transcript(to_text(value))

    return _read_each(rows, target, skipped, read), _check_unused_template(prompt, rows.count)


def _read_each(
    rows: RowColumns, name: str, skipped: SkippedRows, read: Callable[[int, Any], tuple[Turn, ...]]
) -> list[Conversation]:
    """The conversation of every row, with the system message beside it; what cannot be read is left out."""
    systems = rows.texts(["system"])
    media = [(n, rows.column(n).to_pylist()) for n in MEDIA_KEYS if n in rows]
    found = []
    for i, value in enumerate(rows.values(name)):
        try:
            if beside := next((n for n, values in media if values[i] not in (None, "", "[]", [])), None):
                raise UnreadableRow("other_parts", beside)
            found.append(_add_system(Conversation(i + 1, read(i, value)), systems[i] or None))
        except UnreadableRow as why:
            skipped.add(i + 1, why)
    return found


def _read_roles(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows
) -> tuple[list[Conversation], list[Finding]]:
    """Messages, one per row."""
    contents = rows.values("content")
    is_rendered = [n.lower() for n in prompt.inputs] == ["content"]
    rendered = prompt.render_column({prompt.inputs[0]: rows.column("content")}).to_pylist() if is_rendered else contents
    found, findings = read_roles(rows, contents, rendered, skipped)
    return found, findings if is_rendered else [*_check_unused_template(prompt, len(found)), *findings]


SHAPES: tuple[RowShape, ...] = (
    ("role, content", ("role", "content"), _read_roles),
    *(("messages", (name,), _read_messages) for name in MESSAGE_COLUMNS),
    ("prompt, completion", ("prompt", "completion"), _read_completions),
    *(("prompt, completion", ("prompt", worse, better), _read_completions) for better, worse in PREFERENCE_COLUMNS),
    *(("messages", (worse, better), _read_whole_pairs) for better, worse in PREFERENCE_COLUMNS),
    ("instruction, output", ("instruction", "output"), _read_instructions),
    ("text", ("text",), _read_transcripts),
)
"""Those that need no model, in order of precedence."""


def _add_rejected(
    conversations: list[Conversation], rows: RowColumns, skipped: SkippedRows, read: Callable[[Any], str]
) -> list[Conversation]:
    """With the worse answers of their rows, where there is a column of them."""
    name = next((worse for worse in REJECTED_COLUMNS if worse in rows), None)
    if name is None:
        return conversations
    values, found = rows.values(name), []
    for c in conversations:
        try:
            found.append(c._replace(rejected=read(values[c.row - 1])))
        except UnreadableRow as why:
            skipped.add(c.row, why)
    return found


def _parse_rejected(value: Any) -> str:
    """The worse answer of whole conversations: messages, or a transcript."""
    if isinstance(value, str) and parse_message_list(value) is None:
        return find_last_answer(parse_transcript(value)) if is_transcript(value) else value
    return parse_answer(value)


def _add_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or any(t.role == "system" for t in conversation.turns):
        return conversation
    return conversation._replace(turns=(Turn("system", system), *conversation.turns))


def _canonicalise_answers(
    conversations: Sequence[Conversation], outputs: Outputs
) -> tuple[list[Conversation], list[Finding]]:
    """Those whose last answer has the model's form, written as the model is to write it; the others are context."""
    kept: list[Conversation] = []
    unfit: dict[int, str] = {}
    for c in conversations:
        last = max((i for i, t in enumerate(c.turns) if t.is_learned), default=-1)
        turns = []
        for i, turn in enumerate(c.turns):
            try:
                fits = turn.is_learned and turn.content.strip()
                turns.append(turn._replace(content=outputs.canonical(turn.content)) if fits else turn)
            except OutputMismatch as e:
                turns.append(turn._replace(weight=0))
                if i == last:
                    unfit[c.row] = str(e)
        if c.row not in unfit:
            kept.append(c._replace(turns=tuple(turns)))
    columns = ", ".join(outputs.names)
    return kept, _report_mismatches(
        unfit, f"Let the answers be JSON that fits the schema, or give the columns {columns}."
    )


def _report_mismatches(unfit: Mapping[int, str], next_step: str) -> list[Finding]:
    if not unfit:
        return []
    first, why = next(iter(unfit.items()))
    text = (
        f"{{n}} left out, whose answer does not have the model's types; row {first:,}: {_escape_count(why)} {next_step}"
    )
    return [build_finding("unfit_answer", "warning", list(unfit), text)]


def _escape_count(text: str) -> str:
    return f"{text.rstrip('.').replace('{n}', '{ n}')}."


def _find_valid_rows(columns: Sequence[Any]) -> list[bool]:
    """Whether any of the columns has a value, row by row."""
    masks = [c.is_valid().to_pylist() for c in columns]
    return [any(m) for m in zip(*masks, strict=True)]


def _check_unused_template(prompt: Prompt, count: int) -> list[Finding]:
    if prompt.is_single_input:
        return []
    text = (
        "{n} holding whole prompts: the prompt_template is not put around them in training, but it is when the model "
        "is asked."
    )
    what_to_do = f"Train on the columns {', '.join(prompt.inputs)} and the output to have it in both."
    return [build_finding("template_unused", "warning", [], text, what_to_do, count=count)]


_END_TOKENS = re.compile(r"(?:<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<\|endoftext\|>|<end_of_turn>|</s>|<eos>)\s*$")
_START_TOKENS = re.compile(r"^\s*(?:<s>|<bos>|<\|begin_of_text\|>)\s*")
_ROLE_DELIMITERS = (
    re.compile(r"<\|im_start\|>\s*(\w+)[^\S\n]*\n"),
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"),
    re.compile(r"<start_of_turn>\s*(\w+)[^\S\n]*\n"),
    re.compile(r"<\|(system|user|assistant)\|>\s*"),
    re.compile(r"(?:^|\n)\s*###\s*(System|Human|User|Assistant|Instruction|Input|Response|Output|Answer)\s*:?[^\S\n]*"),
    re.compile(r"(?:^|\n)[^\S\n]*(System|Human|User|Assistant)[^\S\n]*:[^\S\n]*"),
)
"""Each begins a message; the group is its role."""
_HEADING_ROLES = {
    "instruction": "user", "input": "user", "response": "assistant", "output": "assistant", "answer": "assistant",
}  # fmt: skip
_LLAMA_TURN = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=<s>|\[INST\]|$)", re.DOTALL)
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


def parse_transcript(text: str) -> tuple[Turn, ...]:
    """The messages of a text; UnreadableRow where it has no marks of them.

    >>> [t.content for t in parse_transcript("### Human: 1 + 1 =\\n### Assistant: 2")]
    ['1 + 1 =', '2']
    """
    turns = _parse_llama(text) or next(
        filter(_is_conversation, (_split_at_delimiters(mark, text) for mark in _ROLE_DELIMITERS)), ()
    )
    if not _is_conversation(turns):
        raise UnreadableRow("plain_text")
    return turns


def is_transcript(text: str) -> bool:
    """Whether it has marks of messages."""
    try:
        return bool(parse_transcript(text))
    except UnreadableRow:
        return False


def _is_conversation(turns: tuple[Turn, ...]) -> bool:
    roles = [t.role for t in turns]
    return "user" in roles and "assistant" in roles


def _split_at_delimiters(mark: re.Pattern[str], text: str) -> tuple[Turn, ...]:
    before, *pieces = mark.split(text)
    turns: list[Turn] = []
    if preamble := _strip_delimiters(before):
        turns.append(Turn("system", preamble))
    for name, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = _HEADING_ROLES.get(name.lower()) or ROLES.get(name.lower())
        if role is None:
            return ()
        if name.lower() == "input" and turns and turns[-1].role == "user":
            more = _strip_delimiters(content)
            turns[-1] = Turn("user", f"{turns[-1].content}\n\n{more}" if more else turns[-1].content)
        else:
            turns.append(Turn(role, _strip_delimiters(content)))
    return tuple(turns)


def _parse_llama(text: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for asked, answer in _LLAMA_TURN.findall(text):
        if system := _LLAMA_SYSTEM.match(asked):
            turns.append(Turn("system", system[1].strip()))
            asked = asked[system.end() :]
        turns += [Turn("user", asked.strip()), Turn("assistant", _strip_delimiters(answer))]
    return tuple(turns)


def _strip_delimiters(text: str) -> str:
    """Without marks of an end, nor white space around it."""
    text = _START_TOKENS.sub("", text)
    while (shorter := _END_TOKENS.sub("", text)) != text:
        text = shorter
    return text.strip()
