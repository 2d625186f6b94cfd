"""How well chunks answer a question, by a model of ours that reads both: what a first search found, in better order.

Called by `search`.  A model with `mode = 'rerank'` gives a score; any other one is asked for a yes or a no, and how
probable its word was makes the score, where its handler has `logprobs`.  A model with the two inputs question and
context is asked with its own prompt, since it may be tuned for it.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pyarrow as pa

from sqlft.catalog.records import KnowledgeBase
from sqlft.data import Prompt
from sqlft.errors import OptionError
from sqlft.inference.resolve import ResolvedVersion, resolve
from sqlft.inference.statement_runs import PromptTable, StatementRuns
from sqlft.knowledge.embedding import parse_model_name
from sqlft.options import option_names
from sqlft.session import Session

PROMPT = Prompt(
    "Does this text answer the question? Write yes or no, and nothing else.\n\n"
    "Question: {{question}}\n\nText: {{context}}\n\nYes or no:"
)
WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
OWN_INPUTS = ["question", "context"]
MAX_TOKENS = 4
"""Of a yes or no: tokenizers of other scripts need more than one."""


def count_candidates(n: int) -> int:
    """How many chunks are read again to find the n best, as MindsDB has it.

    >>> count_candidates(10), count_candidates(100)
    (20, 130)
    """
    return min(2 * n, n + 30)


def resolve_reranking_model(session: Session, base: KnowledgeBase) -> ResolvedVersion | None:
    """The model that orders what was found, ready to be asked; None without one, OptionError for one that cannot."""
    return None if base.reranking_model is None else resolve_judge(session, base.reranking_model)


def resolve_judge(session: Session, name: str) -> ResolvedVersion:
    """The model of that name with the prompt that `score_pairs` needs; OptionError where it answers otherwise."""
    resolved = resolve(session, *parse_model_name(name))
    outputs = resolved.outputs
    if outputs.is_score:
        return resolved
    if outputs.is_typed:
        raise OptionError(
            f"The model '{name}' answers with {outputs.columns[0].type}, and not with a yes or a no.",
            "Take a model that answers with a text, or make one with mode = 'rerank'.",
        )
    if sorted(map(str.lower, resolved.prompt.inputs)) == sorted(OWN_INPUTS):
        return resolved
    return replace(resolved, prompt=PROMPT)


def open_judge(runs: StatementRuns, resolved: ResolvedVersion) -> PromptTable:
    """Where the model of `resolve_judge` is asked, with the options that a yes or a no takes."""
    options: dict[str, object] = {}
    if not resolved.outputs.is_score:
        known = option_names(type(resolved.handler).predict_options)
        wanted: dict[str, object] = {"logprobs": True, "max_tokens": MAX_TOKENS}
        options = {name: value for name, value in wanted.items() if name in known}
    return runs.prompt_table(resolved, resolved.model.key.name, options)


def score_pairs(
    session: Session, runs: StatementRuns, resolved: ResolvedVersion, questions: pa.Array, texts: pa.Array
) -> list[float | None]:
    """How well each text answers its question, between 0 and 1; None where the model gave no answer to that."""
    prompts = open_judge(runs, resolved)
    first_is_question = resolved.outputs.is_score or resolved.prompt.inputs[0].lower() == "question"
    ids = prompts.ids([questions, texts] if first_is_question else [texts, questions])
    prompts.inference_run.rows += len(ids)
    prompts.ask_all()
    output = resolved.outputs.names[0]
    answers, logprobs = (column.to_pylist() for column in prompts.columns(ids, [output, f"{output}_logprob"]))
    if resolved.outputs.is_score:
        return [None if a is None or math.isnan(a) else min(1.0, max(0.0, a)) for a in answers]
    scores = [_score_word(answer, logprob) for answer, logprob in zip(answers, logprobs, strict=True)]
    unread = [a for a, score in zip(answers, scores, strict=True) if score is None and a is not None]
    if unread:
        session.show_warning(
            f"{len(unread)} of {len(answers)} answers of the reranking model {resolved.version.key} are neither yes "
            f"nor no ({unread[0][:60]!r}): those chunks stay where the search had them."
        )
    return scores


def _score_word(answer: str | None, logprob: float | None) -> float | None:
    """The probability of a yes.

    >>> _score_word("Yes.", math.log(0.75)), _score_word("no", math.log(0.75)), _score_word("No", None)
    (0.75, 0.25, 0.0)
    """
    word = WORD.match(answer or "")
    if word is None:
        return None
    probability = 1.0 if logprob is None else min(1.0, math.exp(logprob))
    return probability if word[1].lower() == "yes" else 1 - probability
