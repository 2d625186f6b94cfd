"""Training rows to conversations, their format recognised by the columns: messages, prompts, transcripts, pairs.

`prepare` calls `recognise` with the rows of a query.  What cannot be read costs its row, and is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from sqlft.data.conversations import Conversation, Finding, Turn, report_finding
from sqlft.data.messages import (
    MEDIA_KEYS,
    MESSAGE_COLUMNS,
    REASONING,
    ROLES,
    TOOLS,
    RowColumns,
    SkippedRows,
    UnreadableRow,
    find_last_answer,
    parse_answer,
    parse_message_list,
    parse_spoken_messages,
    parse_tools,
    parse_turn,
    parse_turns,
    read_roles,
)
from sqlft.data.outputs import OutputMismatch, Outputs
from sqlft.data.prompts import Prompt, to_text
from sqlft.errors import DataError, did_you_mean

PREFERENCE_COLUMNS = (
    ("chosen", "rejected"),
    ("preferred", "non_preferred"),
    ("preferred_output", "non_preferred_output"),
)
"""Names of the better and the worse answer, for training that learns from pairs."""
REJECTED_COLUMNS = tuple(worse for _, worse in PREFERENCE_COLUMNS)
SIDE_COLUMNS = frozenset(
    {
        *REJECTED_COLUMNS,
        *(better for better, _ in PREFERENCE_COLUMNS),
        "system",
        TOOLS,
        "weight",
        "id",
        REASONING,
        *MEDIA_KEYS,
    }
)
"""Columns that may accompany conversations, and are not prompts."""
SAMPLE_ROWS = 100
"""Rows from which a column's content is detected."""
SHOWN_COLUMNS = 20


class RecognisedRows(NamedTuple):
    """The conversations in the order of the rows, and what reading them brought up."""

    shape: str
    conversations: list[Conversation]
    findings: list[Finding]


ShapeReader = Callable[[RowColumns, Prompt, str, SkippedRows], list[Conversation]]
"""From rows, the model's prompt and the name of the last column that the shape needs."""


class RowShape(NamedTuple):
    """A form of training rows: the columns it needs, and what reads them."""

    name: str
    columns: tuple[str, ...]
    read: ShapeReader
    holds: Callable[[object], bool] | None = None
    """Whether a value of the last column is of this shape, where the column's name may mean something else."""

    def fits(self, rows: RowColumns) -> bool:
        """Whether the rows have the columns; where they have others too, the values must be of this shape."""
        if not all(name in rows for name in self.columns):
            return False
        if self.holds is None or rows.names <= {*self.columns, *SIDE_COLUMNS}:
            return True
        return any(self.holds(value) for value in rows.values(self.columns[-1], SAMPLE_ROWS) if value)


def recognise(rows: pa.Table, prompt: Prompt, targets: Sequence[str], outputs: Outputs | None = None) -> RecognisedRows:
    """Conversations of `rows`: DataError with the shapes that fit if its columns make none.

    With typed `outputs` an answer is JSON, made of their columns; what does not fit is left out and counted.
    """
    columns = RowColumns(rows)
    typed = outputs if outputs is not None and outputs.schema is not None else None
    answers = [typed.names] if typed is not None and len(typed.names) > 1 else [(target,) for target in targets]
    shapes = (*_list_model_shapes(prompt, answers, typed), *SHAPES)
    shape = next((shape for shape in shapes if shape.fits(columns)), None)
    if shape is None:
        raise _unknown_shape_error(rows, prompt, answers[0])
    skipped = SkippedRows()
    conversations = shape.read(columns, prompt, shape.columns[-1], skipped)
    if shape.name != "role, content":
        parse = _parse_rejected if shape.read is _read_whole_pairs else parse_answer
        conversations = _add_rejected(conversations, columns, skipped, parse)
        if REASONING in columns and REASONING not in {n.lower() for n in (*prompt.inputs, *shape.columns)}:
            conversations = _add_reasoning(conversations, columns.texts([REASONING]))
    if TOOLS in columns and shape.name != "inputs":
        conversations = _add_tools(conversations, columns.values(TOOLS), skipped)
    if typed is not None and shape.name != "inputs":
        conversations = _canonicalise_answers(conversations, typed, skipped)
    return RecognisedRows(shape.name, [_add_system(c, prompt.system) for c in conversations], skipped.findings)


def is_known_shape(rows: pa.Table) -> bool:
    """Whether the columns are a shape by themselves, whatever the model."""
    columns = RowColumns(rows)
    return any(shape.fits(columns) for shape in SHAPES)


def _list_model_shapes(prompt: Prompt, answers: Sequence[tuple[str, ...]], typed: Outputs | None) -> Iterator[RowShape]:
    """The model's own columns are what a user most likely means."""
    inputs = {name.lower() for name in prompt.inputs}
    for names in answers:
        if not inputs & {name.lower() for name in names}:
            read = _read_inputs if typed is None else partial(_read_typed, names=names, outputs=typed)
            yield RowShape("inputs", (*prompt.inputs, *names), read)
    for better, worse in PREFERENCE_COLUMNS:
        yield RowShape("inputs", (*prompt.inputs, worse, better), _read_inputs)


def _unknown_shape_error(rows: pa.Table, prompt: Prompt, answers: Sequence[str]) -> DataError:
    names = rows.column_names
    more = f" … and {len(names) - SHOWN_COLUMNS:,} more" if len(names) > SHOWN_COLUMNS else ""
    shown = ", ".join(names[:SHOWN_COLUMNS]) + more
    expected = (*prompt.inputs, *answers)
    lower = {n.lower() for n in names}
    missing = [n for n in expected if n.lower() not in lower]
    near = did_you_mean(missing[0], names) if missing and len(missing) < len(expected) else ""
    return DataError(
        f"The training query gives the columns {shown}; that is none of the shapes to train from."
        f" Of this model's own columns it lacks {', '.join(missing)}.{near}",
        "Let the query give one of:\n"
        f"  {', '.join(expected)} - this model's inputs and its output, one example per row\n"
        "  role, content - messages; a new conversation at each system row, or by chat_id (in order of message_id)\n"
        "  messages, or conversations - one conversation per row, as a list of {role, content} or {from, value}, or as "
        "JSON text\n"
        "  prompt, completion - one example per row; so are instruction, input, output\n"
        "  text - one conversation per row, with the marks of a chat template\n"
        "  a column rejected beside the answer holds a worse one, for training that learns from pairs\n"
        "  a column reasoning beside the answer holds what is thought before it, for models that think\n"
        "  a column tools beside conversations holds the functions that they may call, as OpenAI's JSON\n"
        f"Rename columns with AS: SELECT my_column AS {expected[0]}, …",
    )


def _read_inputs(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    conversations = []
    for i, (user, answer) in enumerate(zip(_render_users(rows, prompt), rows.values(target), strict=True), 1):
        try:
            conversations.append(Conversation(i, (Turn("user", user), Turn("assistant", parse_answer(answer)))))
        except UnreadableRow as why:
            skipped.add(i, why)
    return conversations


def _read_typed(
    rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows, names: Sequence[str], outputs: Outputs
) -> list[Conversation]:
    """Answers as JSON, written as the model is to write them."""
    columns = [rows.column(name).to_pylist() for name in names]
    conversations: list[Conversation] = []
    unfit: dict[int, str] = {}
    for i, (user, *values) in enumerate(zip(_render_users(rows, prompt), *columns, strict=True), 1):
        try:
            answer = "" if all(v is None for v in values) else outputs.write(values)
            conversations.append(Conversation(i, (Turn("user", user), Turn("assistant", answer))))
        except OutputMismatch as e:
            unfit[i] = str(e)
    skipped.add_findings(_report_mismatches(unfit, "Cast the column in the query, or filter these rows out."))
    return conversations


def _render_users(rows: RowColumns, prompt: Prompt) -> list[str]:
    """The prompt of each row, '' where no input has a value."""
    columns = {name: rows.column(name) for name in prompt.inputs}
    masks = (c.is_valid().to_pylist() for c in columns.values())
    users = prompt.render_column(columns).to_pylist()
    return [user if any(known) else "" for user, *known in zip(users, *masks, strict=True)]


def _read_messages(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    """Whole conversations, followed by the better answer where there is a column of those."""
    better = next((name for name, _ in PREFERENCE_COLUMNS if name in rows), None)
    answers = rows.values(better) if better else [None] * rows.count

    def read(i: int, value: object) -> tuple[Turn, ...]:
        turns = parse_turns(value)
        return turns if answers[i] is None else _append_answer(turns, answers[i])

    return _read_each(rows, prompt, target, skipped, read)


def _read_completions(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    """Prompts and completions, each a text or a list of messages."""
    answers = rows.values(target)

    def read(i: int, value: object) -> tuple[Turn, ...]:
        messages = parse_spoken_messages(value)
        question = (Turn("user", to_text(value)),) if messages is None else tuple(parse_turn(m) for m in messages)
        return _append_answer(question, answers[i])

    return _read_each(rows, prompt, "prompt", skipped, read)


def _append_answer(question: tuple[Turn, ...], answer: object) -> tuple[Turn, ...]:
    """With an answer that is a text, messages, or the whole conversation once more."""
    messages = parse_spoken_messages(answer)
    if messages is None:
        return (*question, Turn("assistant", to_text(answer)))
    turns = tuple(parse_turn(m) for m in messages)
    return turns if any(t.role == "user" for t in turns) else (*question, *turns)


def _read_whole_pairs(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    """Conversations that end with the better answer, in a column without one for the prompt."""

    def read(i: int, value: object) -> tuple[Turn, ...]:
        return parse_turns(value) if parse_message_list(value) is not None else parse_transcript(to_text(value))

    return _read_each(rows, prompt, target, skipped, read)


def _read_instructions(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    """Alpaca's columns: the input, where there is one, comes below the instruction."""
    inputs, answers = rows.texts(["input"]), rows.values(target)

    def read(i: int, value: object) -> tuple[Turn, ...]:
        user = f"{to_text(value)}\n\n{inputs[i]}" if inputs[i].strip() else to_text(value)
        return Turn("user", user), Turn("assistant", parse_answer(answers[i]))

    return _read_each(rows, prompt, "instruction", skipped, read)


def _read_transcripts(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    return _read_each(rows, prompt, target, skipped, lambda _, value: parse_transcript(to_text(value)))


def _read_each(
    rows: RowColumns, prompt: Prompt, name: str, skipped: SkippedRows, read: Callable[[int, object], tuple[Turn, ...]]
) -> list[Conversation]:
    """The conversation of every row, with the system message beside it; what cannot be read is left out."""
    skipped.add_findings(_check_unused_template(prompt, rows.count))
    systems = rows.texts(["system"])
    media = [(n, rows.column(n).to_pylist()) for n in MEDIA_KEYS if n in rows]
    conversations = []
    for i, value in enumerate(rows.values(name)):
        try:
            if beside := next((n for n, values in media if values[i] not in (None, "", "[]", [])), None):
                raise UnreadableRow("other_parts", beside)
            conversations.append(_add_system(Conversation(i + 1, read(i, value)), systems[i] or None))
        except UnreadableRow as why:
            skipped.add(i + 1, why)
    return conversations


def _read_roles(rows: RowColumns, prompt: Prompt, target: str, skipped: SkippedRows) -> list[Conversation]:
    """Messages, one per row."""
    contents = rows.values("content")
    if [n.lower() for n in prompt.inputs] == ["content"]:
        users = prompt.render_column({prompt.inputs[0]: rows.column("content")}).to_pylist()
        return read_roles(rows, contents, users, skipped)
    conversations = read_roles(rows, contents, contents, skipped)
    skipped.add_findings(_check_unused_template(prompt, len(conversations)))
    return conversations


def _is_message_list(value: object) -> bool:
    return parse_message_list(value) is not None


def _is_transcript_text(value: object) -> bool:
    return is_transcript(to_text(value))


SHAPES: tuple[RowShape, ...] = (
    RowShape("role, content", ("role", "content"), _read_roles),
    *(
        RowShape("messages", (name,), _read_messages, None if name == "messages" else _is_message_list)
        for name in MESSAGE_COLUMNS
    ),
    RowShape("prompt, completion", ("prompt", "completion"), _read_completions),
    *(
        RowShape("prompt, completion", ("prompt", worse, better), _read_completions)
        for better, worse in PREFERENCE_COLUMNS
    ),
    *(
        RowShape("messages", pair[::-1], _read_whole_pairs, lambda v: _is_message_list(v) or _is_transcript_text(v))
        for pair in PREFERENCE_COLUMNS
    ),
    RowShape("instruction, output", ("instruction", "output"), _read_instructions),
    RowShape("text", ("text",), _read_transcripts, _is_transcript_text),
)
"""Those that need no model, in order of precedence."""


def _add_rejected(
    conversations: list[Conversation], rows: RowColumns, skipped: SkippedRows, parse: Callable[[object], str]
) -> list[Conversation]:
    """With the worse answers of their rows, where there is a column of them."""
    name = next((worse for worse in REJECTED_COLUMNS if worse in rows), None)
    if name is None:
        return conversations
    values = rows.values(name)
    return _change_each(conversations, skipped, lambda c: c._replace(rejected=parse(values[c.row - 1])))


def _change_each(
    conversations: Sequence[Conversation], skipped: SkippedRows, change: Callable[[Conversation], Conversation]
) -> list[Conversation]:
    """Changed, but for those whose row cannot be read, which are left out."""
    complete = []
    for c in conversations:
        try:
            complete.append(change(c))
        except UnreadableRow as why:
            skipped.add(c.row, why)
    return complete


def _parse_rejected(value: object) -> str:
    """The worse answer of whole conversations: messages, or a transcript."""
    if isinstance(value, str) and parse_message_list(value) is None:
        return find_last_answer(parse_transcript(value)) if is_transcript(value) else value
    return parse_answer(value)


def _add_reasoning(conversations: Sequence[Conversation], thoughts: Sequence[str]) -> list[Conversation]:
    """With what is thought before the last answer, by row."""
    return [
        c._replace(turns=(*c.prompt, c.turns[-1]._replace(reasoning=text)))
        if (text := thoughts[c.row - 1].strip()) and c.turns[-1].role == "assistant"
        else c
        for c in conversations
    ]


def _add_tools(
    conversations: Sequence[Conversation], tools: Sequence[object], skipped: SkippedRows
) -> list[Conversation]:
    """With the tools of the row that each starts at."""
    return _change_each(conversations, skipped, lambda c: c._replace(tools=parse_tools(tools[c.row - 1])))


def _add_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or any(t.role == "system" for t in conversation.turns):
        return conversation
    return conversation._replace(turns=(Turn("system", system), *conversation.turns))


def _canonicalise_answers(
    conversations: Sequence[Conversation], outputs: Outputs, skipped: SkippedRows
) -> list[Conversation]:
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
    next_step = f"Let the answers be JSON that fits the schema, or give the columns {columns}."
    skipped.add_findings(_report_mismatches(unfit, next_step))
    return kept


def _report_mismatches(unfit: Mapping[int, str], next_step: str) -> list[Finding]:
    if not unfit:
        return []
    row, why = next(iter(unfit.items()))
    why = why.rstrip(".").replace("{n}", "{ n}")
    text = f"{{n}} left out, whose answer does not have the model's types; row {row:,}: {why}. {next_step}"
    return report_finding("unfit_answer", "warning", list(unfit), text)


def _check_unused_template(prompt: Prompt, count: int) -> list[Finding]:
    if prompt.is_single_input:
        return []
    text = (
        "{n} holding whole prompts: the prompt_template is not put around them in training, but it is when the model "
        "is asked."
    )
    what_to_do = f"Train on the columns {', '.join(prompt.inputs)} and the output to have it in both."
    return report_finding("template_unused", "warning", [], text, what_to_do, count=count)


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
    """The messages of a text; UnreadableRow where it has no delimiters of them.

    >>> [t.content for t in parse_transcript("### Human: 1 + 1 =\\n### Assistant: 2")]
    ['1 + 1 =', '2']
    """
    turns = _parse_llama(text) or next(
        filter(_is_conversation, (_split_at_delimiters(delimiter, text) for delimiter in _ROLE_DELIMITERS)), ()
    )
    if not _is_conversation(turns):
        raise UnreadableRow("plain_text")
    return turns


def is_transcript(text: str) -> bool:
    """Whether it has delimiters of messages.

    >>> is_transcript("Human: hi\\nAssistant: hello"), is_transcript("hi")
    (True, False)
    """
    try:
        return bool(parse_transcript(text))
    except UnreadableRow:
        return False


def _is_conversation(turns: tuple[Turn, ...]) -> bool:
    roles = [t.role for t in turns]
    return "user" in roles and "assistant" in roles


def _split_at_delimiters(delimiter: re.Pattern[str], text: str) -> tuple[Turn, ...]:
    before, *pieces = delimiter.split(text)
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
    for question, answer in _LLAMA_TURN.findall(text):
        if system := _LLAMA_SYSTEM.match(question):
            turns.append(Turn("system", system[1].strip()))
            question = question[system.end() :]
        turns += [Turn("user", question.strip()), Turn("assistant", _strip_delimiters(answer))]
    return tuple(turns)


def _strip_delimiters(text: str) -> str:
    """Without start and end tokens, nor white space around it."""
    text = _START_TOKENS.sub("", text)
    while (shorter := _END_TOKENS.sub("", text)) != text:
        text = shorter
    return text.strip()
