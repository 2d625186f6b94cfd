"""How well knowledge bases find what they should: EVALUATE KNOWLEDGE_BASE.

Called by `sqlft.statements.evaluation`, with judged questions: each with the id of a text that answers it, in several
rows where several do, and perhaps a grade.  Out come metrics with intervals, one setting compared with another on the
same questions; or what MindsDB's EVALUATE shows.

A ranking is that of the texts of the k best chunks, each text once, at its best chunk.  recall: the share of the right
texts that are in it; precision: the share of k that is right; hit: whether any is; mrr: one divided by the place of the
first; ndcg: the discounted gain (Järvelin and Kekäläinen 2002, grades as they are, as trec_eval has it) divided by the
best possible.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, NamedTuple

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase, utc_now
from sqlft.data import Prompt
from sqlft.data.outputs import OutputColumn, Outputs
from sqlft.errors import DataError, OptionError, did_you_mean
from sqlft.handler import Alias, Range
from sqlft.inference.resolve import resolve
from sqlft.inference.statement_runs import StatementRuns
from sqlft.knowledge import reranking
from sqlft.knowledge.embedding import parse_model_name, resolve_embedding_model
from sqlft.knowledge.search import SearchOptions, search_chunks
from sqlft.knowledge.tables import has_tables, table_name, visible_chunks_sql
from sqlft.knowledge.words import read_arrow, registered
from sqlft.metrics import statistics
from sqlft.session import Session

METRIC = re.compile(r"(recall|precision|hit|mrr|ndcg)(?:@([1-9][0-9]*))?", re.IGNORECASE)
DEFAULT_METRICS = ("recall@10", "mrr@10", "ndcg@10")
DEFAULT_DEPTH = 10
DOC_ID_DEPTH, RELEVANCY_DEPTH = 100, 10
"""How many chunks MindsDB's two versions of EVALUATE look at."""
GENERATED_QUESTIONS = 20
SCORES_SCHEMA = pa.schema(
    [
        ("knowledge_base", pa.string()),
        ("search", pa.string()),
        *statistics.SCORE_SCHEMA,
        ("seconds", pa.float64()),
        *statistics.COMPARISON_SCHEMA,
    ]
)
QUESTION_PROMPT = Prompt(
    "Write a question that this text answers and no other text would, with clues that tell which text is meant, "
    "and its answer.\n\nText:\n{{content}}"
)


@dataclass
class KnowledgeEvaluateSettings:
    """EVALUATE KNOWLEDGE_BASE … USING, beside the options of its models and, without ON, MindsDB's"""

    metrics: Annotated[Any, "recall@10, precision@5, hit@1, mrr@10, ndcg@10, …", Alias("metric")] = None
    question: Annotated[str, "the column of questions"] = "question"
    id: Annotated[str, "the column of the ids that are right"] = "id"
    grade: Annotated[str | None, "the column of how right they are, for ndcg; without it all are alike"] = None
    search: Annotated[Any, "meaning, words or both; a list compares them"] = None
    hybrid_search_alpha: Annotated[Any, "of both: the weight of meaning, 0 to 1; a list compares them"] = None
    reranking: Annotated[Any, "whether the reranking model is asked; [true, false] compares"] = True
    seed: Annotated[int, "for the intervals, and which texts questions are made of", Range(0)] = 0
    test_table: Annotated[str | None, "MindsDB's: the table with question and doc_id"] = None
    version: Annotated[str, "MindsDB's: doc_id or llm_relevancy", Alias("method")] = "doc_id"
    generate_data: Annotated[Any, "MindsDB's: fill test_table by a model, true or {'from_sql': …, 'count': 20}"] = None
    evaluate: Annotated[bool, "MindsDB's: false only fills test_table"] = True
    llm: Annotated[str | None, "the model that writes and judges; without it the reranking model"] = None
    save_to: Annotated[str | None, "MindsDB's: a table for the result"] = None


class Judged(NamedTuple):
    """Questions, and for each the grades of the texts that answer it, by id as text."""

    questions: list[str]
    grades: list[dict[str, float]]


class Setting(NamedTuple):
    """One way to search one knowledge base."""

    base: KnowledgeBase
    options: SearchOptions

    @property
    def search(self) -> str:
        """How it is searched, in words."""
        o = self.options
        return f"{o.search}{f' {o.alpha:g}' if o.search == 'both' else ''}{'' if o.reranking else ', not reranked'}"


class Scored(NamedTuple):
    """What one setting found: its scores of each metric, a question each, and the seconds of a question."""

    setting: Setting
    scores: dict[str, list[float]]
    seconds: float


def open_models(session: Session, runs: StatementRuns, base: KnowledgeBase, given: KnowledgeEvaluateSettings) -> None:
    """Open the models that searching a base asks, so that `runs` knows their options before anything is asked."""
    if base.embedding_model is not None and given.search != "words":
        resolved = resolve_embedding_model(session, base)
        runs.prompt_table(resolved, resolved.model.key.name)
    reranker = reranking.resolve_reranking_model(session, base) if given.reranking is not False else None
    for judge in (reranker, None if given.llm is None else reranking.resolve_judge(session, given.llm)):
        if judge is not None:
            reranking.open_judge(runs, judge)


def evaluate_searches(
    session: Session,
    runs: StatementRuns,
    bases: Sequence[KnowledgeBase],
    rows: pa.Table,
    given: KnowledgeEvaluateSettings,
) -> pa.Table:
    """Each setting's metrics over the judged rows, compared with those of the first."""
    metrics = parse_metrics(given.metrics)
    depth = max(k for _, k in metrics.values())
    settings = _list_settings(bases, given, depth)
    if len(settings) > 1:
        statistics.require_packages()
    judged = _read_judged(rows, given)
    scored = []
    for setting in settings:
        _warn_of_unknown_ids(session, setting.base, judged)
        rankings, seconds = _search(session, runs, setting, judged.questions)
        scores = {
            name: [score_ranking(kind, ids, grades, k) for ids, grades in zip(rankings, judged.grades, strict=True)]
            for name, (kind, k) in metrics.items()
        }
        scored.append(Scored(setting, scores, seconds))
    result = [_build_row(one, scored[0], name, given.seed) for one in scored for name in metrics]
    return pa.Table.from_pylist(result, SCORES_SCHEMA)


def parse_metrics(option: object) -> dict[str, tuple[str, int]]:
    """Metrics by their names, as kind and depth; OptionError.

    >>> parse_metrics(["Recall@5", "mrr"])
    {'recall@5': ('recall', 5), 'mrr@10': ('mrr', 10)}
    """
    names = list(DEFAULT_METRICS) if option is None else option if isinstance(option, list) else [option]
    parsed: dict[str, tuple[str, int]] = {}
    for name in names:
        match = METRIC.fullmatch(str(name))
        if match is None:
            kinds = ("recall", "precision", "hit", "mrr", "ndcg")
            raise OptionError(
                f"There is no metric '{name}' of rankings.{did_you_mean(str(name).partition('@')[0], kinds)}",
                f"There are: {', '.join(f'{kind}@k' for kind in kinds)}.",
            )
        kind, k = match[1].lower(), int(match[2] or DEFAULT_DEPTH)
        parsed[f"{kind}@{k}"] = (kind, k)
    if not parsed:
        raise OptionError("metrics names no metric.", "Write: USING metrics = ['recall@10', 'mrr'].")
    return parsed


def score_ranking(kind: str, ids: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """A metric of one ranking.

    >>> score_ranking("ndcg", ["b", "a"], {"a": 1.0}, 10) == 1 / math.log2(3)
    True
    """
    gains = [grades.get(i, 0.0) for i in ids[:k]]
    right = [place for place, gain in enumerate(gains, 1) if gain > 0]
    if kind == "recall":
        return len(right) / len(grades)
    if kind == "precision":
        return len(right) / k
    if kind == "hit":
        return float(bool(right))
    if kind == "mrr":
        return 1 / right[0] if right else 0.0
    best = sorted(grades.values(), reverse=True)[:k]
    return _discount(gains) / _discount(best)


def _discount(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))


def _list_settings(bases: Sequence[KnowledgeBase], given: KnowledgeEvaluateSettings, depth: int) -> list[Setting]:
    """Every base with every combination of what is a list."""
    settings: list[Setting] = []
    for base in bases:
        usual = (
            "words" if base.embedding_model is None else "both" if given.hybrid_search_alpha is not None else "meaning"
        )
        kinds = _as_list(usual if given.search is None else given.search)
        alphas = _as_list(0.5 if given.hybrid_search_alpha is None else given.hybrid_search_alpha)
        for kind, alpha, reranks in product(kinds, alphas, _as_list(given.reranking)):
            setting = Setting(base, _build_search_options(kind, alpha, reranks, depth, base))
            if setting not in settings:
                settings.append(setting)
    return settings


def _build_search_options(
    kind: object, alpha: object, reranks: object, depth: int, base: KnowledgeBase
) -> SearchOptions:
    if kind not in ("meaning", "words", "both"):
        raise OptionError(f"search is {kind!r}.", "It is 'meaning', 'words' or 'both', or a list of them.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise OptionError(f"hybrid_search_alpha is {alpha!r}.", "0 is by words alone, 1 by meaning alone.")
    if not isinstance(reranks, bool):
        raise OptionError(f"reranking is {reranks!r}.", "Write true, false, or [true, false].")
    return SearchOptions(
        depth,
        kind,
        float(alpha) if kind == "both" else SearchOptions.alpha,
        reranking=reranks or base.reranking_model is None,
    )


def _as_list(value: object) -> list[object]:
    if value == []:
        raise OptionError("A list of settings is empty.", "Write: search = ['meaning', 'both'].")
    return value if isinstance(value, list) else [value]


def _read_judged(rows: pa.Table, given: KnowledgeEvaluateSettings) -> Judged:
    """The questions in their first order; DataError where none is judged."""
    questions, ids = _column(rows, given.question, "question"), _column(rows, given.id, "id")
    grades = [1.0] * rows.num_rows if given.grade is None else _read_grades(_column(rows, given.grade, "grade"))
    by_question: dict[str, dict[str, float]] = {}
    for question, right, grade in zip(_as_texts(questions), _as_texts(ids), grades, strict=True):
        if question is not None and right is not None and grade > 0:
            known = by_question.setdefault(question, {})
            known[right] = max(grade, known.get(right, 0.0))
    if not by_question:
        raise DataError(
            "No row has a question and the id of a text that answers it.", "Try the query alone: SELECT question, id …"
        )
    return Judged(list(by_question), list(by_question.values()))


def _column(rows: pa.Table, name: str, role: str) -> pa.ChunkedArray:
    places = [i for i, known in enumerate(rows.column_names) if known.lower() == name.lower()]
    if not places:
        raise DataError(
            f"The query has no column '{name}'.{did_you_mean(name, rows.column_names)}",
            f"Write … AS {role}, or USING {role} = 'column'; it has: {', '.join(rows.column_names)}.",
        )
    return rows.column(places[0])


def _as_texts(column: pa.ChunkedArray) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]


def _read_grades(column: pa.ChunkedArray) -> list[float]:
    try:
        return [0.0 if value is None else max(0.0, float(value)) for value in column.to_pylist()]
    except (TypeError, ValueError) as e:
        raise DataError(f"A grade is no number: {e}.", "Give numbers, 0 for a text that does not answer.") from e


def _warn_of_unknown_ids(session: Session, base: KnowledgeBase, judged: Judged) -> None:
    wanted = {i for grades in judged.grades for i in grades}
    known: set[str] = set()
    if has_tables(session.con, base):
        relation = session.con.sql(f"SELECT id::VARCHAR FROM {table_name(base, 'documents')}")
        known = wanted.intersection(read_arrow(relation).column(0).to_pylist())
    if missing := sorted(wanted - known):
        session.show_warning(
            f"{len(missing)} of {len(wanted)} ids are not in the knowledge base {base.key}, and cannot be found: "
            f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
        )


def _search(
    session: Session, runs: StatementRuns, setting: Setting, questions: Sequence[str]
) -> tuple[list[list[str]], float]:
    """The ids of the texts that were found for each question, best first and each once; and the seconds of one."""
    started = time.monotonic()
    found = search_chunks(session, runs, setting.base, pa.table({"text": pa.array(questions)}), setting.options)
    seconds = (time.monotonic() - started) / len(questions)
    rankings: list[dict[str, None]] = [{} for _ in questions]
    if found.num_rows:
        for question, name in _read_chunks(session, setting.base, found, "id::VARCHAR"):
            rankings[question][name] = None
    return [list(ranking) for ranking in rankings], seconds


def _read_chunks(session: Session, base: KnowledgeBase, found: pa.Table, column: str) -> list[tuple[int, str]]:
    """What was found: the question and a column of the chunk, best first."""
    with registered(session.con, found=found) as names:
        return session.con.sql(
            f"SELECT f.question, v.{column} FROM {names['found']} AS f JOIN ({visible_chunks_sql(base)}) AS v "
            "USING (chunk) ORDER BY f.question, f.rank"
        ).fetchall()


def _build_row(one: Scored, first: Scored, metric: str, seed: int) -> dict[str, object]:
    scores = one.scores[metric]
    row: dict[str, object] = {
        "knowledge_base": str(one.setting.base.key),
        "search": one.setting.search,
        "metric": metric,
        "value": statistics.mean(scores),
        "n": len(scores),
        **statistics.mean_interval(scores, seed)._asdict(),
        "seconds": one.seconds,
    }
    if one is first:
        return row
    compared = statistics.compare_paired(first.scores[metric], scores, seed)
    return {**row, "baseline": f"{first.setting.base.key}: {first.setting.search}", **compared._asdict()}


# -- MindsDB's ---------------------------------------------------------------------------------------------------------


def evaluate_by_doc_id(
    session: Session, runs: StatementRuns, base: KnowledgeBase, rows: pa.Table, given: KnowledgeEvaluateSettings
) -> dict[str, object]:
    """At which place of the 100 best chunks the text with `doc_id` is, as MindsDB sums it up."""
    questions, wanted = _column(rows, given.question, "question"), _column(rows, "doc_id", "doc_id")
    depth = min(_list_settings([base], given, DOC_ID_DEPTH), key=lambda s: s.options.k)
    started = time.monotonic()
    found = search_chunks(session, runs, base, pa.table({"text": questions.cast(pa.large_string())}), depth.options)
    seconds = (time.monotonic() - started) / rows.num_rows
    ids: list[list[str]] = [[] for _ in range(rows.num_rows)]
    for question, name in _read_chunks(session, base, found, "id::VARCHAR") if found.num_rows else ():
        ids[question].append(name)
    places = [
        ranking.index(right) if right in ranking else None
        for ranking, right in zip(ids, _as_texts(wanted), strict=True)
    ]
    known = [place for place in places if place is not None]
    recall = {str(i): sum(place <= i for place in known) / rows.num_rows for i in range(DOC_ID_DEPTH)}
    return {
        "total": rows.num_rows,
        "total_found": len(known),
        "retrieved_in_top_10": sum(place < 10 for place in known),
        "cumulative_recall": json.dumps(recall),
        "avg_query_time": seconds,
        "name": base.key.name,
        "created_at": utc_now().replace(tzinfo=None),
    }


def evaluate_by_relevancy(
    session: Session, runs: StatementRuns, base: KnowledgeBase, rows: pa.Table, given: KnowledgeEvaluateSettings
) -> dict[str, object]:
    """How well a model finds that the 10 best chunks answer each question, as MindsDB sums it up."""
    questions = _column(rows, given.question, "question").cast(pa.large_string())
    judge = reranking.resolve_judge(session, _require_llm(base, given))
    setting = _list_settings([base], given, RELEVANCY_DEPTH)[0]
    started = time.monotonic()
    found = search_chunks(session, runs, base, pa.table({"text": questions}), setting.options)
    seconds = (time.monotonic() - started) / rows.num_rows
    pairs = _read_chunks(session, base, found, "chunk_content") if found.num_rows else []
    texts = questions.take(pa.array([i for i, _ in pairs], pa.int64()))
    scores = reranking.score_pairs(session, runs, judge, texts, pa.array([t for _, t in pairs], pa.large_string()))
    by_question: dict[int, list[float]] = {}
    for (question, _), score in zip(pairs, scores, strict=True):
        by_question.setdefault(question, []).append(score or 0.0)
    return {
        **_sum_up_relevancy(list(by_question.values()), rows.num_rows),
        "avg_query_time": seconds,
        "name": base.key.name,
        "created_at": utc_now().replace(tzinfo=None),
    }


def _sum_up_relevancy(relevancy: Sequence[Sequence[float]], total: int) -> dict[str, object]:
    """MindsDB's figures of the scores of what was found; questions that found nothing count in the first only."""
    right = [[score >= 0.5 for score in scores] for scores in relevancy]
    first = [flags.index(True) if any(flags) else None for flags in right]
    longest = max(map(len, relevancy), default=0)
    by_place = [[scores[k] for scores in relevancy if k < len(scores)] for k in range(longest)]
    hits = [[any(flags[: k + 1]) for flags in right] for k in range(longest)]
    precision = [[sum(flags[: k + 1]) / (k + 1) for flags in right] for k in range(longest)]
    gains = [(_discount(scores), _discount(sorted(scores, reverse=True))) for scores in relevancy]
    return {
        "avg_relevancy": math.fsum(sum(scores) / len(scores) for scores in relevancy) / total,
        "avg_relevance_score_by_k": [_mean(column, 2) for column in by_place],
        "avg_first_relevant_position": statistics.mean([place for place in first if place is not None]),
        "mean_mrr": _mean([0.0 if place is None else 1 / (place + 1) for place in first]),
        "hit_at_k": [_mean(column, 2) for column in hits],
        "bin_precision_at_k": [_mean(column, 2) for column in precision],
        "avg_entropy": _mean([_entropy(scores) for scores in relevancy]),
        "avg_ndcg": _mean([gain / best if best > 0 else 0.0 for gain, best in gains]),
    }


def _mean(values: Sequence[float], digits: int = 12) -> float:
    return round(math.fsum(values) / len(values), digits) if values else 0.0


def _entropy(scores: Sequence[float]) -> float:
    total = math.fsum(scores)
    return -math.fsum(s / total * math.log(s / total) for s in scores if s > 0) + 0.0 if total else 0.0


def generate_questions(
    session: Session, runs: StatementRuns, base: KnowledgeBase, rows: pa.Table, given: KnowledgeEvaluateSettings
) -> pa.Table:
    """`text`, `question`, `answer` and `doc_id`: a model writes a question for each of some texts.

    `rows` have `content` and perhaps `id`; texts of which it makes none are left out.
    """
    name = _require_llm(base, given)
    resolved = resolve(session, *parse_model_name(name))
    if resolved.outputs.is_typed:
        raise OptionError(f"The model '{name}' does not answer with a text.", "Name another one: llm = 'a model'.")
    outputs = Outputs.from_columns([OutputColumn("question"), OutputColumn("answer")])
    prompt = Prompt(QUESTION_PROMPT.template, outputs.system(None))
    spec = replace(resolved.spec, schema=outputs.schema)
    resolved = replace(resolved, outputs=outputs, prompt=prompt, spec=spec)
    prompts = runs.prompt_table(resolved, resolved.model.key.name)
    texts = _column(rows, "content", "content").cast(pa.large_string())
    ids = prompts.ids([texts])
    prompts.inference_run.rows += rows.num_rows
    prompts.ask_all()
    question, answer = prompts.columns(ids, ["question", "answer"])
    doc_ids = rows.column("id") if "id" in rows.column_names else pa.array(range(rows.num_rows))
    made = pa.table({"text": texts, "question": question, "answer": answer, "doc_id": doc_ids})
    made = made.filter(question.is_valid())
    if not made.num_rows:
        raise DataError(
            f"The model '{name}' wrote no question.", "Take one that follows instructions: llm = 'a model'."
        )
    return made


def sample_sql(base: KnowledgeBase, given: KnowledgeEvaluateSettings) -> str:
    """The query for the texts that questions are made of: `content` and `id`, some by chance, the same each time."""
    option = given.generate_data if isinstance(given.generate_data, Mapping) else {}
    count, source = option.get("count", GENERATED_QUESTIONS), option.get("from_sql")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise OptionError(f"generate_data: count is {count!r}.", "Give a whole number from 1.")
    texts = f"({source}\n)" if isinstance(source, str) else f"({_own_texts_sql(base)})"
    return f"SELECT * FROM {texts} USING SAMPLE reservoir({count} ROWS) REPEATABLE ({given.seed})"


def _own_texts_sql(base: KnowledgeBase) -> str:
    return f"SELECT chunk_content AS content, id FROM ({visible_chunks_sql(base)})"


def _require_llm(base: KnowledgeBase, given: KnowledgeEvaluateSettings) -> str:
    name = given.llm or base.reranking_model
    if name is None:
        raise OptionError(
            f"{base.key} has no reranking model, so a model must be named.", "Write: USING llm = 'name of a model'."
        )
    return name
