"""The metric of a judge: a model says which of two answers is better, asked in both orders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pyarrow as pa

from sqlft.errors import OptionError
from sqlft.metrics.metric import Column, expand_option, metric, pair_texts

PROMPT = """Compare two answers to the same question. Judge whether they are correct and complete, not their length.

Question:
{question}

Answer A:
{a}

Answer B:
{b}

Which answer is better? Write exactly one word: A, B or TIE."""
VERDICT = re.compile(r"(?:A|B|TIE)", re.IGNORECASE)
INDEFINITE_ARTICLE = re.compile(
    r"(?:^|(?<=[.!?:\n]\s))A(?=\s+[a-z]*[^s\W]\b)(?!\s+(?:and|or|but|would|did|also|correctly|clearly)\b)"
)
"""An A at the start of a sentence that does not name an answer: the word behind it is no verb."""
NAMED_ANSWER = re.compile(r"\b(A|B|b|TIE|[Tt]ie|a(?=\W*$))\b(?!['’])")
PREFERENCE = re.compile(
    r"\b(A|B)\b[\s*]*(?:is|was|seems|looks|would be|wins|beats)\b(?!\s+(?:not|worse|wrong))"
    r"|\b(?:prefer|choose|verdict|winner|choice|(?:better|best)(?: answer| one)?)(?:\s+is)?[\s:*]*(?:answer\s+)?"
    r"(A|B|TIE)\b",
    re.IGNORECASE,
)
TIE_WORDS = re.compile(r"\b(?:equal|equally|same|tied|draw)\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
SCORES = {"A": 1.0, "TIE": 0.5, "B": 0.0}
AskJudge = Callable[[Sequence[str]], Sequence[str | None]]


@metric(columns=("question",), needs=("judge",))
def llm_judge(
    actual: Column, prediction: Column, *, judge: AskJudge | None = None, question: Column | None = None
) -> pa.DoubleArray:
    """1 where a model that judges prefers the prediction to the actual answer, 0.5 for a tie, 0 where it loses.

    Each row is judged twice, the order swapped, as judges favour a place (Zheng et al. 2023), and the score is the
    mean.  NULL where the judge gives no verdict.
    """
    if judge is None:
        raise OptionError("llm_judge needs a model that judges.", "Write: EVALUATE … USING judge = 'name of a model'.")
    pairs = pair_texts(actual, prediction)
    questions = expand_option("(not given)" if question is None else question, len(pairs), "question")
    rows = [i for i, (a, p) in enumerate(pairs) if a is not None and p is not None]
    prompts = [_build_prompt(questions[i], *pairs[i]) for i in rows] + [
        _build_prompt(questions[i], *pairs[i][::-1]) for i in rows
    ]
    verdicts = [_parse_verdict(answer) for answer in judge(prompts)]
    scores: list[float | None] = [None if a is None else 0.0 for a, _ in pairs]
    for place, i in enumerate(rows):
        first, second = verdicts[place], verdicts[place + len(rows)]
        scores[i] = None if first is None or second is None else (1 - first + second) / 2
    return pa.array(scores, pa.float64())


def _build_prompt(question: str | None, a: str | None, b: str | None) -> str:
    return PROMPT.format(question=question or "(not given)", a=a, b=b)


def _parse_verdict(text: str | None) -> float | None:
    """The score of the first of the two answers: by a word alone, else by the last sentence that names one."""
    word = (text or "").strip().strip(".!*\"'`()[]:")
    if VERDICT.fullmatch(word):
        return SCORES[word.upper()]
    last = next(
        (s for s in reversed(SENTENCE.split(INDEFINITE_ARTICLE.sub("", text or ""))) if NAMED_ANSWER.search(s)), ""
    )
    named = {name.upper() for name in NAMED_ANSWER.findall(last)}
    if len(named) > 1:
        better = [one or other for one, other in PREFERENCE.findall(last)]
        named = {better[-1].upper()} if better else {"TIE"} if TIE_WORDS.search(last) else set()
    return SCORES[named.pop()] if named else None
