"""What is looked at before anything trains: every check is a function of the conversations."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from sqlft.data.findings import Conversation, Finding, Turn, finding
from sqlft.errors import DataError

CountTokens = Callable[[Sequence[str]], "list[int] | None"]
LONG_ROWS = ("cut", "drop", "error")
FEW = 50
LOPSIDED_FROM, LOPSIDED_KINDS, LOPSIDED_SHARE = 20, 20, 0.8
MESSAGE_TOKENS = 4
"""What a chat template adds to a message, about: role, start and end."""
TEMPLATE_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|system|user|assistant)\|>"
    r"|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|\{\{[^{}\n]*\}\}"
)
HEADINGS = re.compile(r"#{3}|-{5,}|={5,}")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")

Kept = tuple[list[Conversation], list[Finding]]


def usable(conversations: Iterable[Conversation]) -> Kept:
    """Those that end with an answer and ask something, the others left out and counted."""
    kept: list[Conversation] = []
    trimmed: list[int] = []
    lost: dict[str, list[int]] = defaultdict(list)
    for c in conversations:
        end = next((i for i in range(len(c.turns), 0, -1) if c.turns[i - 1].role == "assistant"), 0)
        why = _unusable(c.turns[:end])
        if why:
            lost[why].append(c.row)
            continue
        if end < len(c.turns):
            trimmed.append(c.row)
        kept.append(c._replace(turns=c.turns[:end]))
    findings = [finding(code, "warning", rows, _LOST[code]) for code, rows in lost.items()]
    if trimmed:
        text = (
            "{n} cut behind the last answer: what follows it has none. Look whether a LIMIT cuts conversations in two."
        )
        findings.append(finding("no_last_answer", "warning", trimmed, text))
    return kept, findings


_LOST = {
    "no_answer": "{n} without any assistant message left out. Each needs one to learn from.",
    "missing_answer": "{n} with an empty or NULL answer left out. Filter them out, or fill the answers in.",
    "empty_prompt": "{n} without any text from the user before the answer left out. Filter them out.",
}


def _unusable(turns: tuple[Turn, ...]) -> str:
    """Why these turns, up to the last answer, cannot be trained on."""
    if not turns:
        return "no_answer"
    if any(not t.content.strip() for t in turns if t.role == "assistant"):
        return "missing_answer"
    first = next(i for i, t in enumerate(turns) if t.role == "assistant")
    return "" if any(t.role == "user" and t.content.strip() for t in turns[:first]) else "empty_prompt"


def lengths(
    conversations: list[Conversation], count_tokens: CountTokens | None, max_length: int | None, long_rows: str
) -> Kept:
    """Over-long conversations: counted, and dropped or refused as `long_rows` says; cutting is the handler's work."""
    if long_rows not in LONG_ROWS:
        raise DataError(f"long_rows is {long_rows!r}.", f"It is one of: {', '.join(LONG_ROWS)}.")
    counts = count_tokens([_joined(c) for c in conversations]) if count_tokens and max_length else None
    if counts is None or max_length is None:
        return conversations, []
    tokens = [n + MESSAGE_TOKENS * len(c.turns) for n, c in zip(counts, conversations, strict=True)]
    rows = [c.row for n, c in zip(tokens, conversations, strict=True) if n > max_length]
    if not rows:
        return conversations, []
    figures = f"longer than max_length = {max_length:,} tokens (the longest has about {max(tokens):,})"
    if long_rows == "error":
        raise DataError(
            f"{len(rows):,} of {len(conversations):,} conversations are {figures}; rows {_few(rows)}.",
            "Raise max_length, shorten the rows, or USING long_rows = 'cut' or 'drop'.",
        )
    done = "cut" if long_rows == "cut" else "left out"
    text = f"{{n}} {figures}: {done}. Raise max_length to keep them whole, or set long_rows ('cut', 'drop', 'error')."
    kept = (
        [c for n, c in zip(tokens, conversations, strict=True) if n <= max_length]
        if long_rows == "drop"
        else conversations
    )
    return kept, [finding("over_long", "warning", rows, text)]


def findings_of(conversations: Sequence[Conversation]) -> list[Finding]:
    """Everything else that is worth knowing, none of it dropped."""
    return [f for check in CHECKS for f in check(conversations)]


def _duplicates(conversations: Sequence[Conversation]) -> list[Finding]:
    seen: set[tuple[Turn, ...]] = set()
    again: list[int] = []
    for c in conversations:
        if c.turns in seen:
            again.append(c.row)
        seen.add(c.turns)
    text = "{n} repeating an earlier one word for word, which weighs more for it. SELECT DISTINCT leaves them out."
    return [finding("duplicates", "warning", again, text)] if again else []


def _conflicts(conversations: Sequence[Conversation]) -> list[Finding]:
    answers: dict[tuple[Turn, ...], str] = {}
    rows = [c.row for c in conversations if answers.setdefault(c.prompt, c.answer) != c.answer]
    text = "{n} with another answer than an earlier one to the same prompt: no model can learn both. Keep one of them."
    return [finding("conflicting_answers", "warning", rows, text)] if rows else []


def _few_rows(conversations: Sequence[Conversation]) -> list[Finding]:
    text = f"Only {{n}} to learn from; below {FEW} a model seldom learns more than a form. Add rows if you can."
    return [finding("few_rows", "warning", [], text, len(conversations))] if len(conversations) < FEW else []


def _lopsided(conversations: Sequence[Conversation]) -> list[Finding]:
    counts = Counter(c.answer for c in conversations)
    (top, n), *_ = counts.most_common(1)
    few_kinds = len(counts) <= min(LOPSIDED_KINDS, len(conversations) // 2)
    if len(conversations) < LOPSIDED_FROM or not few_kinds or n < LOPSIDED_SHARE * len(conversations):
        return []
    text = (
        f"{{n}} of {len(conversations):,} with the same answer ({top[:40]!r}, of {len(counts)} different ones): always "
        "saying it would look good. Add rows with other answers, or take fewer of these."
    )
    return [finding("lopsided_answers", "warning", [c.row for c in conversations if c.answer == top], text)]


def _separators(conversations: Sequence[Conversation]) -> list[Finding]:
    found = _matching(conversations, TEMPLATE_TOKENS, lambda _: True)
    headings = _matching(conversations, HEADINGS, lambda t: t.role == "assistant")
    findings = []
    if found[0]:
        text = (
            f"{{n}} holding {_listed(found[1])}: marks of a chat template, or a placeholder left unfilled. The handler "
            "puts the template around each message itself; take the marks out of the text."
        )
        findings.append(finding("stray_separators", "warning", found[0], text))
    if headings[0]:
        text = f"{{n}} with {_listed(headings[1])} in an answer, where some providers stop. Take it out if it is stray."
        findings.append(finding("separators_in_answers", "info", headings[0], text))
    return findings


def _matching(
    conversations: Sequence[Conversation], pattern: re.Pattern[str], looked_at: Callable[[Turn], bool]
) -> tuple[list[int], Counter[str]]:
    rows: list[int] = []
    marks: Counter[str] = Counter()
    for c in conversations:
        hits = {m for t in c.turns if looked_at(t) for m in pattern.findall(t.content)}
        marks.update(hits)
        if hits:
            rows.append(c.row)
    return rows, marks


def _listed(marks: Counter[str]) -> str:
    return ", ".join(mark[:30] for mark, _ in marks.most_common(3))


def _characters(conversations: Sequence[Conversation]) -> list[Finding]:
    rows = [c.row for c in conversations if any(CONTROL.search(t.content) for t in c.turns)]
    text = "{n} with control characters, or bytes that are no UTF-8 (shown as \ufffd). Clean them with regexp_replace."
    return [finding("odd_characters", "warning", rows, text)] if rows else []


CHECKS: tuple[Callable[[Sequence[Conversation]], list[Finding]], ...] = (
    _duplicates,
    _conflicts,
    _few_rows,
    _lopsided,
    _separators,
    _characters,
)


def overlap(train: Sequence[Conversation], valid: Sequence[Conversation]) -> list[Finding]:
    """Prompts of the validation rows that are trained on as well."""
    known = {c.prompt for c in train}
    rows = [c.row for c in valid if c.prompt in known]
    text = "{n} for validation with a prompt that is trained on too: the validation loss flatters. Take it out of one."
    return [finding("overlap", "warning", rows, text)] if rows else []


def _joined(conversation: Conversation) -> str:
    return "\n".join(t.content for t in conversation.turns)


def _few(rows: Sequence[int]) -> str:
    return ", ".join(f"{r:,}" for r in rows[:3]) + (" …" if len(rows) > 3 else "")
