"""A model of ours as the judge of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.options import names_of
from sqlft.runtime.asker import asker_of
from sqlft.runtime.models import resolve
from sqlft.runtime.session import Session
from sqlft.runtime.settings import QuerySettings
from sqlft.sql.statements import Evaluate


class Judge:
    """Asks a model of ours; given to llm_judge as its `ask`."""

    def __init__(self, session: Session, name: Any, statement: Evaluate, using: Mapping[str, Any]) -> None:
        self._session, self._statement = session, statement
        self._using = {k: v for k, v in using.items() if k in names_of(QuerySettings)}
        self._resolved = resolve(session, *_named(str(name)))
        if len(self._resolved.prompt.inputs) != 1:
            raise OptionError(
                f"The judge '{name}' has {len(self._resolved.prompt.inputs)} inputs.",
                "Take a model with one, such as prompt_template = '{{content}}'.",
            )

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """An answer a prompt, None where it failed."""
        with asker_of(self._session, self._using, self._statement.text) as asker:
            book = asker.book(self._resolved, self._resolved.model.key.name)
            ids = book.ids([pa.array(prompts, pa.large_string())])
            book.asking.rows += len(prompts)
            book.ask_all()
            return list(book.columns(ids, [self._resolved.outputs.names[0]])[0].to_pylist())


def _named(text: str) -> tuple[str, int | None]:
    name, dot, number = text.rpartition(".")
    return (name, int(number)) if dot and number.isdecimal() else (text, None)
