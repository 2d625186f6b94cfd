"""Checks of texts: characters that went wrong, and answers that differ from the rest in format, label or length."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from statistics import median
from unicodedata import is_normalized

from sqlft.data.checks.near_duplicates import normalise_text
from sqlft.data.conversations import Conversation, Corpus, Finding, Level, TextTest, report_finding
from sqlft.data.privacy import mask_private

LANGUAGE_SAMPLE = 20_000
"""Conversations whose language is detected; of more an evenly spaced sample."""
MIN_TEXTS, MIN_WORDS = 20, 6
"""Conversations, and words of one, below which no language is detected."""
LANGUAGE_SHARE = 0.8
MOJIBAKE = r"[ÃÂ][\x{80}-\x{bf}\x{152}-\x{2122}]|â€|ï»¿|ðŸ"
INVISIBLE = r"[\x{ad}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2064}\x{feff}]"
ENTITY = r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#x[0-9a-fA-F]{1,5});"
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = {
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
    "Japanese": re.compile("[\u3040-\u30ff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
    "Chinese": re.compile("[\u4e00-\u9fff]"),
}
_FREQUENT_WORDS = {
    "English": "the of and to in is was for that with are this what how which",
    "German": "der die das und ist nicht ein eine zu von mit den wie auf für auch",
    "French": "le la les des est une dans pour que qui sur pas avec du quel",
    "Spanish": "el los las del que una por con para está como cuál cómo qué",
    "Italian": "il gli di che una per con è sono della nel come più quale",
    "Portuguese": "os uma que para com não é dos das como na qual foi são",
    "Dutch": "het een van en niet voor met op zijn dat welke hoe aan ook de",
}
_LANGUAGES_BY_WORD = {
    word: {name for name, words in _FREQUENT_WORDS.items() if word in words.split()}
    for words in _FREQUENT_WORDS.values()
    for word in words.split()
}


def check_encodings(corpus: Corpus) -> list[Finding]:
    """Texts that were read in the wrong encoding, or hold what nobody sees."""
    findings: list[Finding] = []
    for screen, has, code, text, what_to_do in ODDITIES:
        findings += report_finding(code, "warning", corpus.find_rows(screen, has), text, what_to_do)
    text = "{n} with HTML entities such as &amp; in the text."
    what_to_do = "Decode them, unless HTML is the task."
    return findings + report_finding("html_entities", "info", corpus.find_rows(ENTITY), text, what_to_do)


ODDITIES: tuple[tuple[str, TextTest, str, str, str], ...] = (
    (
        MOJIBAKE,
        bool,
        "mojibake",
        "{n} with letters like Ã© or â€™: UTF-8 that was read as Latin-1.",
        "Read the source as UTF-8, or mend the text where it is loaded.",
    ),
    (
        INVISIBLE,
        bool,
        "invisible_characters",
        "{n} with characters that nobody sees: zero-width spaces, soft hyphens, direction marks, byte order marks.",
        "Take them out with regexp_replace.",
    ),
    (
        r"\pM",
        lambda text: not is_normalized("NFC", text),
        "split_letters",
        "{n} with letters and accents in two characters, which look like others that are in one.",
        "Normalise the text: nfc_normalize(column).",
    ),
)


def check_languages(corpus: Corpus) -> list[Finding]:
    """Conversations in another language than most."""
    sample = corpus.sample_evenly(LANGUAGE_SAMPLE).conversations
    known = [(c.row, language) for c in sample if (language := detect_language(_sample_text(c)))]
    counts = Counter(language for _, language in known)
    if len(known) < MIN_TEXTS or len(counts) < 2:
        return []
    (most, n), *others = counts.most_common()
    if n < LANGUAGE_SHARE * len(known):
        return []
    rows = [row for row, language in known if language != most]
    listed = ", ".join(f"{name} {count:,}" for name, count in others[:3])
    of = f" (of {len(sample):,} looked at)" if len(sample) < len(corpus.conversations) else ""
    text = f"{{n}}{of} in another language than most, which are in {most}: {listed}."
    what_to_do = "Leave them out, unless the model is to answer in them too."
    return report_finding("languages", "info", rows, text, what_to_do)


def detect_language(text: str) -> str | None:
    """The script's, or of those in Latin letters the one whose frequent words occur most; None if that is not clear."""
    if not text.isascii():
        scripts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
        name, n = max(scripts.items(), key=lambda item: item[1])
        if n > 0.3 * len(text.replace(" ", "")):
            return "Japanese" if scripts["Japanese"] else name
    words = _WORD.findall(text.lower())
    if len(words) < MIN_WORDS:
        return None
    votes = Counter(name for word in words for name in _LANGUAGES_BY_WORD.get(word, ()))
    best = votes.most_common(2)
    clear = best and best[0][1] >= 3 and (len(best) == 1 or best[0][1] >= 2 * best[1][1])
    return best[0][0] if clear else None


def _sample_text(conversation: Conversation) -> str:
    """The last question, which is seldom SQL or JSON, and the answer."""
    return " ".join(t.content[-250:] for t in conversation.turns[-2:])


MIN_ROWS = 20
"""Rows below which it is not known what most of them do."""
MAJORITY_SHARE = 0.8
MAX_LABELS, MIN_LABEL_ROWS = 50, 5
"""Answers are labels if at most this many differ, with this many rows each on average; one with fewer is rare."""
LONG_ANSWER, LONG_FACTOR = 200, 10
"""An answer is long above this many letters, and this many times the median."""
RARE_SHARE = 0.1
"""A style that fewer of the answers have is an odd one out."""


def check_formats(corpus: Corpus) -> list[Finding]:
    """Answers of another format than most."""
    conversations = corpus.conversations
    kinds = [detect_format(c.answer) for c in conversations]
    (most, n), *_ = Counter(kinds).most_common(1)
    odd = [c.row for c, kind in zip(conversations, kinds, strict=True) if kind != most]
    if len(kinds) < MIN_ROWS or n < MAJORITY_SHARE * len(kinds) or not odd or most == "text":
        return []
    others = ", ".join(dict.fromkeys(k for k in kinds if k != most))
    text = f"{{n}} with an answer that is no {most} ({others}), as {n:,} of {len(kinds):,} are."
    return report_finding("odd_formats", "warning", odd, text, "Mend these answers, or leave the rows out.")


def detect_format(answer: str) -> str:
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
    formats = (kind for kind, pattern in _FORMAT_PATTERNS.items() if pattern.fullmatch(answer))
    return next(formats, "text")


_FORMAT_PATTERNS = {
    "number": re.compile(r"\s*[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*%?\s*"),
    "date": re.compile(r"\s*\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2})?)?\s*"),
    "SQL": re.compile(r"\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE|CREATE)\b.*", re.IGNORECASE | re.DOTALL),
    "markup": re.compile(r"\s*<([A-Za-z][\w-]*)[^>]*>.*</\1>\s*", re.DOTALL),
    "function call": re.compile(r"\s*[A-Za-z_]\w*\(.*\)\s*", re.DOTALL),
}


def check_labels(corpus: Corpus) -> list[Finding]:
    """Where answers are labels: spellings of one label, and labels with few rows."""
    conversations = corpus.conversations
    counts = Counter(c.answer for c in conversations)
    if (
        len(conversations) < MIN_ROWS
        or len(counts) > min(MAX_LABELS, len(conversations) // MIN_LABEL_ROWS)
        or len(counts) < 2
    ):
        return []
    spelt = defaultdict(list)
    for answer in counts:
        spelt[normalise_text(answer) or answer].append(answer)
    variants = [sorted(v, key=lambda a: -counts[a]) for v in spelt.values() if len(v) > 1]
    odd = {a for v in variants for a in v[1:]}
    rows = [c.row for c in conversations if c.answer in odd]
    listed = ", ".join(" / ".join(repr(mask_private(a)[:30]) for a in v) for v in variants[:3])
    text = f"{{n}} with a label in another spelling than most: {listed}."
    findings = report_finding("label_spellings", "warning", rows, text, "Write each label in one way.")
    rare = {a for a, n in counts.items() if n < MIN_LABEL_ROWS}
    rows = [c.row for c in conversations if c.answer in rare]
    text = f"{{n}} with a label of fewer than {MIN_LABEL_ROWS} rows ({len(rare)} of {len(counts)} labels)."
    return findings + report_finding("rare_labels", "info", rows, text, "Add rows of them, or leave these labels out.")


def check_styles(corpus: Corpus) -> list[Finding]:
    """Few answers that begin or end in another way than the others."""
    conversations = corpus.conversations
    if len(conversations) < MIN_ROWS:
        return []
    findings: list[Finding] = []
    for code, style, has in STYLES:
        rows = [c.row for c in conversations if has(c.answer)]
        if len(rows) / len(conversations) < (1 if code == "outer_spaces" else RARE_SHARE):
            level: Level = "warning" if code == "outer_spaces" else "info"
            text = f"{{n}} with an answer that {style}, unlike the others."
            findings += report_finding(code, level, rows, text, "Write all answers in one way.")
    return findings


def _ends_with(marks: str) -> Callable[[str], bool]:
    return lambda answer: answer.rstrip()[-1:] in marks if answer.strip() else False


STYLES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("outer_spaces", "begins or ends with white space", lambda a: a != a.strip()),
    ("with_semicolon", "ends with a semicolon", _ends_with(";")),
    ("without_semicolon", "ends without a semicolon", lambda a: not _ends_with(";")(a)),
    ("with_full_stop", "ends with a full stop", _ends_with(".!?")),
    ("without_full_stop", "ends without a full stop", lambda a: not _ends_with(".!?")(a)),
    ("lower_case", "begins with a small letter", lambda a: a.lstrip()[:1].islower()),
    ("capital", "begins with a capital letter", lambda a: a.lstrip()[:1].isupper()),
    ("several_lines", "has several lines", lambda a: "\n" in a.strip()),
    ("one_line", "has one line only", lambda a: "\n" not in a.strip()),
)


def check_answer_lengths(corpus: Corpus) -> list[Finding]:
    """Answers many times as long as the usual one."""
    conversations = corpus.conversations
    if len(conversations) < MIN_ROWS:
        return []
    usual = median(len(c.answer) for c in conversations)
    most = max(LONG_ANSWER, LONG_FACTOR * usual)
    rows = [c.row for c in conversations if len(c.answer) > most]
    text = (
        f"{{n}} with an answer of more than {most:,.0f} letters, while half of the answers have at most {usual:,.0f}."
    )
    what_to_do = "See whether they belong here; a model learns lengths too."
    return report_finding("long_answers", "info", rows, text, what_to_do)
