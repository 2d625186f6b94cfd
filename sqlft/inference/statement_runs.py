"""All that one statement asks: each model version once for equal prompts, whichever part of the query wants it."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import repeat
from typing import TypeVar

import pyarrow as pa

from sqlft.catalog.records import VersionKey
from sqlft.data import Prompt
from sqlft.inference.cache import Cache
from sqlft.inference.resolve import ResolvedVersion, serve_with_engine
from sqlft.inference.run import Answer, InferenceRun
from sqlft.options import build_options, check_option_names, option_names, pick_options
from sqlft.redact import redact_statement
from sqlft.session import LIMIT_OPTIONS, Budget, QuerySettings, Session

USAGE_TYPE = pa.struct(
    [
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached", pa.bool_()),
        ("seconds", pa.float64()),
        ("cost_usd", pa.float64()),
        ("truncated", pa.bool_()),
    ]
)
UNASKED = Answer(None)
SHARED_WITH_MODELS = ("max_tokens",)
"""Options that mean a model's answer, unless they stand behind an alias."""
Settings = TypeVar("Settings")
MAX_KEY_LENGTH = 64
"""Characters up to which a prompt is remembered as it is."""


class PromptTable:
    """The prompts of one version: input rows to ids, ids to columns of answers."""

    def __init__(self, resolved: ResolvedVersion, inference_run: InferenceRun) -> None:
        self.resolved, self.inference_run = resolved, inference_run
        self._ids: dict[str | bytes | None, int] = {}
        """By text, or by the digest of a long one."""

    def ids(self, columns: Sequence[pa.Array | pa.ChunkedArray], *, is_all: bool = False) -> pa.Array:
        """int32 prompt ids of rows of inputs, in the order of the model's inputs; NULL where all inputs are NULL.

        With `is_all` no more rows will come, and prompts are not remembered.
        """
        import pyarrow.compute as pc

        prompt = self.resolved.prompt
        texts = prompt.render_column(dict(zip(prompt.inputs, columns, strict=True)))
        empty = columns[0].is_null()
        for column in columns[1:]:
            empty = pc.and_(empty, column.is_null())
        if pc.any(empty).as_py():
            texts = pc.if_else(empty, pa.scalar(None, texts.type), texts)
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        encoded = texts.dictionary_encode()
        if is_all and not self._ids:
            start = len(self.inference_run.answers)
            self.inference_run.add_all(encoded.dictionary.to_pylist())
            return pc.add(encoded.indices, pa.scalar(start, pa.int32()))
        ids_of_texts = []
        for text in encoded.dictionary.to_pylist():
            key = (
                text if text is None or len(text) <= MAX_KEY_LENGTH else blake2b(text.encode(), digest_size=16).digest()
            )
            prompt_id = self._ids.get(key)
            if prompt_id is None:
                prompt_id = self._ids[key] = self.inference_run.add(text)
            ids_of_texts.append(prompt_id)
        return pa.array(ids_of_texts, pa.int32()).take(encoded.indices)

    def columns(
        self, ids: pa.Array, names: Sequence[str], weights: pa.Array | pa.ChunkedArray | None = None
    ) -> list[pa.Array]:
        """The answer's columns and those about it that are named, one value per id; what was not asked is NULL.

        `weights` are how many rows each id stands for, an Arrow column; without them one.
        """
        encoded = ids.dictionary_encode()
        all_answers = self.inference_run.answers
        answers = [UNASKED if (answer := all_answers[i]) is None else answer for i in encoded.dictionary.to_pylist()]
        if self.inference_run.totals.errors:
            failed = {p for p, answer in enumerate(answers) if isinstance(answer, Answer) and answer.error is not None}
            counts = weights.to_pylist() if weights is not None else repeat(1)
            places = encoded.indices.to_pylist()
            self.inference_run.failed_rows += sum(
                n for place, n in zip(places, counts, strict=False) if place in failed
            )
        return [self._column(name.lower(), answers).take(encoded.indices) for name in names]

    def _column(self, name: str, answers: Sequence[Answer | str]) -> pa.Array:
        outputs = self.resolved.outputs
        for place, target in enumerate(outputs.names):
            if target.lower() == name:
                values = [a if isinstance(a, str) else None if a.values is None else a.values[place] for a in answers]
                return outputs.arrow(place, values)
        if name.endswith("_error"):
            return pa.array([None if isinstance(a, str) else a.error for a in answers], pa.string())
        details = [Answer(a) if isinstance(a, str) else a for a in answers]
        if name.endswith("_logprob"):
            return pa.array([a.logprob for a in details], pa.float64())
        if name.endswith("_reasoning"):
            return pa.array([a.reasoning for a in details], pa.string())
        return pa.array([_build_usage(a) for a in details], USAGE_TYPE)

    def ask_all(self) -> None:
        """Answer every prompt so far."""
        end = len(self.inference_run.answers)
        while self.inference_run.count_answered(end) < end:
            self.inference_run.advance(end, 4096)


class StatementRuns:
    """What a statement's USING says, and the prompt tables it opened."""

    def __init__(self, session: Session, cache: Cache, using: Mapping[str, object], statement: str) -> None:
        self._session, self._cache, self._using = session, cache, using
        self._statement = (uuid.uuid4().hex, redact_statement(statement))
        self._prompt_tables: dict[tuple[VersionKey, Prompt, str], PromptTable] = {}
        self._accepted_names: dict[str, set[str]] = {}
        self._used_names: set[str] = set()
        self._limits: Budget | None = None
        self.in_ledger = True

    def override_prompt(self, resolved: ResolvedVersion, alias: str) -> ResolvedVersion:
        """With the prompt that USING gives in place of the model's."""
        template = self._options_of_alias(alias).get("prompt_template", self._using.get("prompt_template"))
        if template is None or isinstance(template, Mapping):
            return resolved
        return dataclasses.replace(resolved, prompt=Prompt(str(template), resolved.prompt.system))

    def prompt_table(
        self, resolved: ResolvedVersion, alias: str, more: Mapping[str, object] | None = None
    ) -> PromptTable:
        """The prompt table of a version; two references with the same options share one.

        `more` are options that go over those of USING.
        """
        engine_name = self._options_of_alias(alias).get("serve", self._using.get("serve"))
        if isinstance(engine_name, str):
            resolved = serve_with_engine(self._session, resolved, engine_name)
        given = {**self._options_for(resolved, alias), **(more or {})}
        settings = build_options(QuerySettings, pick_options(given, QuerySettings), "This query")
        handlers_own = option_names(type(resolved.handler).predict_options)
        handler_options = {k: v for k, v in given.items() if k in handlers_own or k not in option_names(QuerySettings)}
        key = (resolved.version.key, resolved.prompt, repr(sorted(given.items())))
        if key not in self._prompt_tables:
            options = resolved.predict_options(handler_options)
            limits = self._limits_for(alias)
            inference_run = InferenceRun(
                self._session, resolved, options, settings, self._cache, self._statement, limits
            )
            inference_run.in_ledger = self.in_ledger
            self._prompt_tables[key] = PromptTable(resolved, inference_run)
        return self._prompt_tables[key]

    def _limits_for(self, alias: str) -> list[Budget]:
        """The statement's limits, which its models share, and those that are for this one alone."""
        if self._limits is None:
            self._limits = _build_limits(self._using)
        own_options = self._options_of_alias(alias)
        return (
            [self._limits, _build_limits(own_options)]
            if pick_options(own_options, QuerySettings).keys() & set(LIMIT_OPTIONS)
            else [self._limits]
        )

    def _options_of_alias(self, alias: str) -> Mapping[str, object]:
        """What USING says for this model alone."""
        return next((v for k, v in self._using.items() if k.lower() == alias.lower() and isinstance(v, Mapping)), {})

    def alias_settings(self, cls: type[Settings], alias: str, given: Mapping[str, object], what: str) -> Settings:
        """What USING says for a relation that is no model, over what is `given`; USING may speak to its models, too."""
        names = option_names(cls)
        own_options = self._options_of_alias(alias)
        check_option_names(own_options, names, what)
        shared = {k: v for k, v in self._using.items() if k in names and k not in SHARED_WITH_MODELS}
        self._accepted_names[alias.lower()] = names | option_names(QuerySettings)
        self._used_names.update(shared, *([alias.lower()] if own_options else []))
        return build_options(cls, {**given, **shared, **own_options}, what)

    def _options_for(self, resolved: ResolvedVersion, alias: str) -> dict[str, object]:
        """USING's keys that this model takes, with `alias.k = v` over them."""
        cls = type(resolved.handler).predict_options
        known = option_names(cls, QuerySettings)
        self._accepted_names[alias.lower()] = known
        shared = {k: v for k, v in self._using.items() if k in known or cls is dict}
        own_options = self._options_of_alias(alias)
        if cls is not dict:
            check_option_names(own_options, known, f"Model '{resolved.model.key.name}'")
        self._used_names.update(shared, *([alias.lower()] if own_options else []))
        return {**shared, **own_options}

    def check_using(self) -> None:
        """OptionError for a key of USING that none of the statement's models takes."""
        unused = [k for k in self._using if k not in self._used_names and k.lower() not in self._accepted_names]
        check_option_names(
            unused, set().union(*self._accepted_names.values()) if self._accepted_names else set(), "This query"
        )

    def finish(self, error: bool = False) -> None:
        """Close all predictors and write the ledger."""
        for prompt_table in self._prompt_tables.values():
            prompt_table.inference_run.finish(error)


@contextmanager
def open_statement_runs(session: Session, using: Mapping[str, object], statement: str) -> Iterator[StatementRuns]:
    """The runs on the session's cache, finished and closed at the end."""
    cache = Cache(session.catalog.folder / "cache.sqlite")
    runs = StatementRuns(session, cache, using, statement)
    failed = True
    try:
        yield runs
        failed = False
    finally:
        runs.finish(error=failed)
        cache.close()


def _build_limits(options: Mapping[str, object]) -> Budget:
    settings = build_options(QuerySettings, {k: v for k, v in options.items() if k in LIMIT_OPTIONS}, "This query")
    return Budget(settings.max_cost_usd, settings.max_rows, settings.max_seconds)


def _build_usage(answer: Answer) -> dict[str, object] | None:
    if answer is UNASKED:
        return None
    return {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "cached": answer.cached,
        "seconds": answer.seconds,
        "cost_usd": answer.cost_usd,
        "truncated": answer.truncated,
    }
