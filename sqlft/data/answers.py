"""What the answers have in common, and those that do not: format, labels, style, length."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from statistics import median

from sqlft.data.corpus import Corpus
from sqlft.data.findings import Finding, Level, finding
from sqlft.data.likeness import normal
from sqlft.data.privacy import masked

ENOUGH = 20
"""Rows below which nothing is said of what most of them do."""
MOST = 0.8
KINDS, A_KIND = 50, 5
"""Answers are labels if there are at most so many, each on average of so many rows; fewer rows of one is rare."""
LONG, TIMES = 200, 10
"""An answer is oddly long with so many letters, and so many times the median's."""
SMALL = 0.1
"""A style that fewer of the answers have is an odd one out."""
_SQL = re.compile(r"\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE|CREATE)\b.*", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"\s*[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*%?\s*")
_DATE = re.compile(r"\s*\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2})?)?\s*")
_CALL = re.compile(r"\s*[A-Za-z_]\w*\(.*\)\s*", re.DOTALL)
_MARKUP = re.compile(r"\s*<([A-Za-z][\w-]*)[^>]*>.*</\1>\s*", re.DOTALL)


def formats(corpus: Corpus) -> list[Finding]:
    """Answers of another format than most."""
    conversations = corpus.conversations
    kinds = [format_of(c.answer) for c in conversations]
    (most, n), *_ = Counter(kinds).most_common(1)
    odd = [c.row for c, kind in zip(conversations, kinds, strict=True) if kind != most]
    if len(kinds) < ENOUGH or n < MOST * len(kinds) or not odd or most == "text":
        return []
    others = ", ".join(dict.fromkeys(k for k in kinds if k != most))
    text = f"{{n}} with an answer that is no {most} ({others}), as {n:,} of {len(kinds):,} are."
    return [finding("odd_formats", "warning", odd, text, "Mend these answers, or leave the rows out.")]


def format_of(answer: str) -> str:
    """JSON, SQL, number, date, function call, markup, code block, or text."""
    start = answer.lstrip()[:1]
    if start in ("{", "["):
        try:
            json.loads(answer)
            return "JSON"
        except (ValueError, RecursionError):
            return "text"
    if answer.lstrip().startswith("```"):
        return "code block"
    found = (kind for kind, pattern in _FORMATS.items() if pattern.fullmatch(answer))
    return next(found, "text")


_FORMATS = {"number": _NUMBER, "date": _DATE, "SQL": _SQL, "markup": _MARKUP, "function call": _CALL}


def labels(corpus: Corpus) -> list[Finding]:
    """Where answers are labels: spellings of one label, and labels with hardly a row."""
    conversations = corpus.conversations
    counts = Counter(c.answer for c in conversations)
    if len(conversations) < ENOUGH or len(counts) > min(KINDS, len(conversations) // A_KIND) or len(counts) < 2:
        return []
    findings = []
    spelt = defaultdict(list)
    for answer in counts:
        spelt[normal(answer) or answer].append(answer)
    variants = [sorted(v, key=lambda a: -counts[a]) for v in spelt.values() if len(v) > 1]
    if variants:
        rare = {a for v in variants for a in v[1:]}
        rows = [c.row for c in conversations if c.answer in rare]
        listed = ", ".join(" / ".join(repr(masked(a)[:30]) for a in v) for v in variants[:3])
        text = f"{{n}} with a label in another spelling than most: {listed}."
        findings.append(finding("label_spellings", "warning", rows, text, "Write each label in one way."))
    few = {a for a, n in counts.items() if n < A_KIND}
    if few:
        rows = [c.row for c in conversations if c.answer in few]
        text = f"{{n}} with a label of fewer than {A_KIND} rows ({len(few)} of {len(counts)} labels)."
        findings.append(finding("rare_labels", "info", rows, text, "Add rows of them, or leave these labels out."))
    return findings


def styles(corpus: Corpus) -> list[Finding]:
    """Few answers that begin or end in another way than the others."""
    conversations = corpus.conversations
    if len(conversations) < ENOUGH:
        return []
    findings = []
    for code, told, has in STYLES:
        rows = [c.row for c in conversations if has(c.answer)]
        share = len(rows) / len(conversations)
        if 0 < share < (1 if code == "outer_spaces" else SMALL):
            level: Level = "warning" if code == "outer_spaces" else "info"
            text = f"{{n}} with an answer that {told}, unlike the others."
            findings.append(finding(code, level, rows, text, "Write all answers in one way."))
    return findings


def _ends(marks: str) -> Callable[[str], bool]:
    return lambda answer: answer.rstrip()[-1:] in marks if answer.strip() else False


STYLES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("outer_spaces", "begins or ends with white space", lambda a: a != a.strip()),
    ("with_semicolon", "ends with a semicolon", _ends(";")),
    ("without_semicolon", "ends without a semicolon", lambda a: not _ends(";")(a)),
    ("with_full_stop", "ends with a full stop", _ends(".!?")),
    ("without_full_stop", "ends without a full stop", lambda a: not _ends(".!?")(a)),
    ("lower_case", "begins with a small letter", lambda a: a.lstrip()[:1].islower()),
    ("capital", "begins with a capital letter", lambda a: a.lstrip()[:1].isupper()),
    ("several_lines", "has several lines", lambda a: "\n" in a.strip()),
    ("one_line", "has one line only", lambda a: "\n" not in a.strip()),
)


def lengths(corpus: Corpus) -> list[Finding]:
    """Answers many times as long as the usual one."""
    conversations = corpus.conversations
    if len(conversations) < ENOUGH:
        return []
    usual = median(len(c.answer) for c in conversations)
    most = max(LONG, TIMES * usual)
    rows = [c.row for c in conversations if len(c.answer) > most]
    text = (
        f"{{n}} with an answer of more than {most:,.0f} letters, while half of the answers have at most {usual:,.0f}."
    )
    what_to_do = "See whether they belong here; a model learns lengths too."
    return [finding("long_answers", "info", rows, text, what_to_do)] if rows else []
