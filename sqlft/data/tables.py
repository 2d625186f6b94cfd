"""Conversations as the table that a trainer gets."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from sqlft.data.findings import Conversation

PLAIN = (pa.field("role", pa.string()), pa.field("content", pa.string()))
MESSAGES = pa.schema([("messages", pa.list_(pa.struct(PLAIN)))])
MORE = {"weight": pa.field("weight", pa.int32()), "name": pa.field("name", pa.string())}
"""What messages have besides where one of them says it."""
CHUNK_CHARACTERS = 100_000_000
"""A batch's texts must stay below Arrow's 2 GB."""


def table_of(conversations: Sequence[Conversation]) -> pa.Table:
    """A table of messages: list<struct<role: string, content: string>>; and rejected: string, if any has that.

    Where a message has a weight of 0 or a name, the structs have the fields weight: int32 and name: string too.
    """
    turns = [t for c in conversations for t in c.turns]
    wanted = {"weight": any(t.weight != 1 for t in turns), "name": any(t.name is not None for t in turns)}
    kind = pa.struct([*PLAIN, *(MORE[name] for name, is_said in wanted.items() if is_said)])
    batches: list[list[Conversation]] = [[]]
    size = 0
    for c in conversations:
        if size > CHUNK_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(c)
        size += sum(len(t.content) for t in c.turns)
    made = pa.Table.from_batches([_batch(b, kind) for b in batches], pa.schema([("messages", pa.list_(kind))]))
    if all(c.rejected is None for c in conversations):
        return made
    return made.append_column("rejected", pa.array([c.rejected for c in conversations], pa.string()))


def _batch(conversations: Sequence[Conversation], kind: pa.StructType) -> pa.RecordBatch:
    fields = [kind.field(i) for i in range(kind.num_fields)]
    turns = [t for c in conversations for t in c.turns]
    columns = [pa.array([getattr(t, f.name) for t in turns], f.type) for f in fields]
    offsets = [0]
    for c in conversations:
        offsets.append(offsets[-1] + len(c.turns))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=fields))
    schema = pa.schema([("messages", pa.list_(kind))])
    return pa.RecordBatch.from_arrays([lists.cast(schema.field(0).type)], schema=schema)
