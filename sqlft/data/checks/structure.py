"""The checks before a training: each is a function of the conversations, and returns findings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from sqlft.data.checks import near_duplicates
from sqlft.data.checks import text as text_checks
from sqlft.data.conversations import Conversation, Corpus, Finding, Level, Turn, report_finding
from sqlft.data.privacy import (
    PASSWORD_SCREEN,
    PERSONAL_SCREEN,
    find_keys,
    find_passwords,
    find_personal_data,
    mask_private,
)
from sqlft.errors import DataError
from sqlft.handler import TOKENS_PER_MESSAGE
from sqlft.redact import KEY_SCREEN

CountTokens = Callable[[Sequence[str]], "list[int] | None"]
LONG_ROWS = ("cut", "drop", "error")
FEW_ROWS = 50
ERROR_SHARE = 0.5
"""Above this share of the rows a fault of them is an error: what is learned is then mostly the fault."""
MIN_SHARE_ROWS = 20
"""Rows below which shares mean nothing."""
MAX_SLOW_ROWS = 100_000
"""Rows that the slow checks read; of more they take every second, third … one."""
LOPSIDED_MIN_ROWS, LOPSIDED_MAX_ANSWERS, LOPSIDED_SHARE = 20, 20, 0.8
TEMPLATE_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|system|user|assistant)\|>"
    r"|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|\{\{[^{}\n]*\}\}"
)
HEADINGS = re.compile(r"#{3}|-{5,}|={5,}")
CONTROL_CHARACTERS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{fffd}]"

CheckedRows = tuple[list[Conversation], list[Finding]]


def drop_unusable(conversations: Iterable[Conversation]) -> CheckedRows:
    """Those that end with an answer and ask something, the others left out and counted."""
    kept: list[Conversation] = []
    trimmed: list[int] = []
    greeting: list[int] = []
    faulty: dict[str, list[int]] = defaultdict(list)
    for c in conversations:
        turns = _unweight_opening_answers(c.turns)
        if turns is not c.turns:
            greeting.append(c.row)
        end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].is_learned), 0)
        if fault := _find_fault(turns[:end]):
            faulty[fault].append(c.row)
            continue
        if end < len(turns):
            trimmed.append(c.row)
        kept.append(c._replace(turns=turns[:end]))
    total = len(kept) + sum(map(len, faulty.values()))
    findings: list[Finding] = []
    for code, rows in faulty.items():
        findings += report_finding(code, choose_level(len(rows), total), rows, *_FAULTS[code])
    text = "{n} cut behind the last answer: what follows it has none."
    findings += report_finding("no_last_answer", "warning", trimmed, text, "See if a LIMIT cuts conversations in two.")
    text = "{n} that open with the assistant: what it says before the first question is context, not learned."
    findings += report_finding("opening_answers", "info", greeting, text)
    return kept, findings


def _unweight_opening_answers(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Answers before any question are context, where others can be learned."""
    first = next((i for i, t in enumerate(turns) if t.role == "user" and t.content.strip()), len(turns))
    if not any(t.is_learned for t in turns[:first]) or not any(t.is_learned for t in turns[first:]):
        return turns
    return (*(t._replace(weight=0) if t.is_learned else t for t in turns[:first]), *turns[first:])


def choose_level(count: int, total: int) -> Level:
    """An error where most of the rows have the fault, a warning otherwise."""
    return "error" if total >= MIN_SHARE_ROWS and count > ERROR_SHARE * total else "warning"


_FAULTS = {
    "no_answer": ("{n} without any assistant message to learn from left out.", "Each needs one."),
    "missing_answer": ("{n} with an empty or NULL answer left out.", "Filter them out, or fill the answers in."),
    "empty_prompt": ("{n} without any text from the user before the answer left out.", "Filter them out."),
}


def _find_fault(turns: tuple[Turn, ...]) -> str:
    """Why these turns, up to the last answer, cannot be trained on."""
    if not turns:
        return "no_answer"
    if any(not t.text.strip() for t in turns if t.is_learned):
        return "missing_answer"
    first = next(i for i, t in enumerate(turns) if t.is_learned)
    return "" if any(t.role == "user" and t.content.strip() for t in turns[:first]) else "empty_prompt"


def check_token_lengths(
    conversations: list[Conversation], count_tokens: CountTokens | None, max_length: int | None, long_rows: str
) -> CheckedRows:
    """Over-long conversations: counted, and kept, dropped or refused by `long_rows`; the handler cuts them."""
    if long_rows not in LONG_ROWS:
        raise DataError(f"long_rows is {long_rows!r}.", f"It is one of: {', '.join(LONG_ROWS)}.")
    counts = count_tokens([c.text for c in conversations]) if count_tokens and max_length else None
    if counts is None or max_length is None:
        return conversations, []
    tokens = [n + TOKENS_PER_MESSAGE * len(c.turns) for n, c in zip(counts, conversations, strict=True)]
    rows = [c.row for n, c in zip(tokens, conversations, strict=True) if n > max_length]
    if not rows:
        return conversations, []
    kept = [c for n, c in zip(tokens, conversations, strict=True) if n <= max_length or long_rows != "drop"]
    figures = f"longer than max_length = {max_length:,} tokens (the longest has about {max(tokens):,})"
    if long_rows == "error":
        listed = ", ".join(f"{r:,}" for r in rows[:3]) + (" …" if len(rows) > 3 else "")
        raise DataError(
            f"{len(rows):,} of {len(conversations):,} conversations are {figures}; rows {listed}.",
            "Raise max_length, shorten the rows, or USING long_rows = 'cut' or 'drop'.",
        )
    done = "cut" if long_rows == "cut" else "left out"
    what_to_do = "Raise max_length to keep them whole, or set long_rows ('cut', 'drop', 'error')."
    return kept, report_finding("over_long", "warning", rows, f"{{n}} {figures}: {done}.", what_to_do)


def run_checks(
    conversations: Sequence[Conversation], stops: Sequence[str] = (), thorough: bool = True
) -> list[Finding]:
    """Everything else that is worth knowing, none of it dropped; `stops` are the model's stop sequences."""
    corpus = Corpus(conversations)
    findings = [f for check in CHECKS for f in check(conversations)]
    findings += [f for check_texts in TEXT_CHECKS for f in check_texts(corpus)] + _check_stop_sequences(corpus, stops)
    if thorough:
        findings += [f for slow in SLOW_CHECKS for f in slow(corpus.sample_evenly(MAX_SLOW_ROWS))]
    return findings


def _check_duplicates(conversations: Sequence[Conversation]) -> list[Finding]:
    seen: set[tuple[object, ...]] = set()
    repeated: list[int] = []
    for c in conversations:
        if (c.turns, c.tools) in seen:
            repeated.append(c.row)
        seen.add((c.turns, c.tools))
    text = "{n} repeating an earlier one word for word, which weighs more for it."
    return report_finding("duplicates", "warning", repeated, text, "SELECT DISTINCT leaves them out.")


def _check_conflicts(conversations: Sequence[Conversation]) -> list[Finding]:
    answers: dict[tuple[object, ...], str] = {}
    rows = [c.row for c in conversations if answers.setdefault((c.prompt, c.tools), c.answer) != c.answer]
    text = "{n} with another answer than an earlier one to the same prompt: no model can learn both."
    level = choose_level(len(rows), len(conversations))
    return report_finding("conflicting_answers", level, rows, text, "Keep one of them.")


def _check_row_count(conversations: Sequence[Conversation]) -> list[Finding]:
    n = len(conversations)
    text = f"Only {{n}} to learn from; below {FEW_ROWS} a model seldom learns more than a form."
    return report_finding("few_rows", "warning", [], text, "Add rows if you can.", count=n) if n < FEW_ROWS else []


def _check_balance(conversations: Sequence[Conversation]) -> list[Finding]:
    counts = Counter(c.answer for c in conversations)
    (top, n), *_ = counts.most_common(1)
    few_kinds = len(counts) <= min(LOPSIDED_MAX_ANSWERS, len(conversations) // 2)
    if len(conversations) < LOPSIDED_MIN_ROWS or not few_kinds or n < LOPSIDED_SHARE * len(conversations):
        return []
    text = (
        f"{{n}} of {len(conversations):,} with the same answer ({mask_private(top)[:40]!r}, of {len(counts)} different "
        "ones): always saying it would look good."
    )
    rows = [c.row for c in conversations if c.answer == top]
    what_to_do = "Add rows with other answers, or take fewer of these."
    return report_finding("lopsided_answers", "warning", rows, text, what_to_do)


def _check_delimiters(corpus: Corpus) -> list[Finding]:
    tokens = _find_delimiters(corpus, TEMPLATE_TOKENS, None)
    text = f"{{n}} holding {_format_most_common(tokens)}: marks of a chat template, or a placeholder left unfilled."
    what_to_do = "The handler puts the template around each message itself; take the marks out of the text."
    findings = report_finding("stray_separators", "warning", list(tokens), text, what_to_do)
    headings = _find_delimiters(corpus, HEADINGS, "assistant")
    text = f"{{n}} with {_format_most_common(headings)} in an answer, where some providers stop."
    findings += report_finding("separators_in_answers", "info", list(headings), text, "Take it out if it is stray.")
    return findings


def _find_delimiters(corpus: Corpus, pattern: re.Pattern[str], role: str | None) -> dict[int, set[str]]:
    """What matched, by row."""
    delimiters: dict[int, set[str]] = defaultdict(set)
    for conversation, turn in corpus.find_turns(pattern.pattern, role):
        delimiters[conversation.row].update(pattern.findall(turn.text))
    return delimiters


def _format_most_common(delimiters: dict[int, set[str]]) -> str:
    counts = Counter(delimiter for row in delimiters.values() for delimiter in row)
    return ", ".join(delimiter[:30] for delimiter, _ in counts.most_common(3))


def _check_characters(corpus: Corpus) -> list[Finding]:
    rows = corpus.find_rows(CONTROL_CHARACTERS)
    text = "{n} with control characters, or bytes that are no UTF-8 (shown as \ufffd)."
    return report_finding("odd_characters", "warning", rows, text, "Clean them with regexp_replace.")


def _check_stop_sequences(corpus: Corpus, stops: Sequence[str]) -> list[Finding]:
    """Stop sequences in the texts: what is asked ends there.  At the very end of an answer is where one belongs."""
    findings: list[Finding] = []
    total = len({c.row for c in corpus.conversations})
    for stop in filter(None, stops):
        answers: dict[int, None] = {}
        prompts: dict[int, None] = {}
        for conversation, turn in corpus.find_turns(re.escape(stop)):
            if turn.role != "assistant":
                prompts[conversation.row] = None
            elif stop in (turn.text.removesuffix(stop) or stop):  # an answer that is the stop alone is lost
                answers[conversation.row] = None
        text = f"{{n}} with the stop sequence {stop!r} in an answer: when asked, the model is cut off there."
        level = choose_level(len(answers), total)
        what_to_do = "Take it out of the answers, or give the model another stop sequence."
        findings += report_finding("stop_in_answers", level, list(answers), text, what_to_do)
        text = f"{{n}} with the stop sequence {stop!r} in a prompt: the model may learn to repeat it."
        what_to_do = "Choose a stop sequence that occurs nowhere in the data."
        findings += report_finding("stop_in_prompts", "info", list(prompts), text, what_to_do)
    return findings


def _check_secrets(corpus: Corpus) -> list[Finding]:
    keys, passwords = corpus.find_rows(KEY_SCREEN, find_keys), corpus.find_rows(PASSWORD_SCREEN, find_passwords)
    text = "{n} holding what looks like a provider's key or a private key: a model may say it to anybody."
    what_to_do = "Take them out (regexp_replace), and replace the keys: they are no secret any more."
    findings = report_finding("secrets", "error", keys, text, what_to_do)
    text = "{n} holding what looks like a password or a token."
    return findings + report_finding("passwords", "warning", passwords, text, "Take them out unless they are made up.")


def _check_personal_data(corpus: Corpus) -> list[Finding]:
    kinds: dict[int, set[str]] = defaultdict(set)
    for conversation, turn in corpus.find_turns(PERSONAL_SCREEN):
        if data := find_personal_data(turn.text):
            kinds[conversation.row].update(data)
    counts = Counter(kind for row in kinds.values() for kind in row)
    listed = ", ".join(f"{kind} ({n:,})" for kind, n in counts.most_common())
    text = f"{{n}} holding what looks like personal data: {listed}."
    what_to_do = "Take it out or replace it, unless it is made up or you may use it."
    return report_finding("personal_data", "warning", list(kinds), text, what_to_do)


CHECKS: tuple[Callable[[Sequence[Conversation]], list[Finding]], ...] = (
    _check_duplicates,
    _check_conflicts,
    _check_row_count,
    _check_balance,
)
TEXT_CHECKS: tuple[Callable[[Corpus], list[Finding]], ...] = (_check_delimiters, _check_characters, _check_secrets)
SLOW_CHECKS: tuple[Callable[[Corpus], list[Finding]], ...] = (
    _check_personal_data,
    near_duplicates.check_near_duplicates,
    text_checks.check_formats,
    text_checks.check_labels,
    text_checks.check_styles,
    text_checks.check_answer_lengths,
    text_checks.check_encodings,
    text_checks.check_languages,
)


def check_overlap(train: Sequence[Conversation], valid: Sequence[Conversation]) -> list[Finding]:
    """Prompts of the validation rows that are trained on as well."""
    known = {c.prompt for c in train}
    rows = [c.row for c in valid if c.prompt in known]
    text = "{n} for validation with a prompt that is trained on too: the validation loss flatters."
    level = choose_level(len(rows), len(valid))
    return report_finding("overlap", level, rows, text, "Take it out of one.")
