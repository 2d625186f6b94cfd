"""Oddities of encoding and language in the texts."""

from __future__ import annotations

import re
from collections import Counter
from unicodedata import is_normalized

from sqlft.data.corpus import Corpus, Has
from sqlft.data.findings import Conversation, Finding, finding

SAMPLE = 20_000
"""Conversations whose language is looked at; of more they are evenly spaced."""
ENOUGH, WORDS = 20, 6
"""Conversations, and words of one, below which nothing is said of languages."""
MOST = 0.8
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
_FREQUENT = {
    "English": "the of and to in is was for that with are this what how which",
    "German": "der die das und ist nicht ein eine zu von mit den wie auf für auch",
    "French": "le la les des est une dans pour que qui sur pas avec du quel",
    "Spanish": "el los las del que una por con para está como cuál cómo qué",
    "Italian": "il gli di che una per con è sono della nel come più quale",
    "Portuguese": "os uma que para com não é dos das como na qual foi são",
    "Dutch": "het een van en niet voor met op zijn dat welke hoe aan ook de",
}
_WORDS = {
    word: {name for name, words in _FREQUENT.items() if word in words.split()}
    for words in _FREQUENT.values()
    for word in words.split()
}


def encodings(corpus: Corpus) -> list[Finding]:
    """Texts that were read in the wrong encoding, or hold what nobody sees."""
    findings = []
    for screen, has, code, told, what_to_do in ODDITIES:
        if rows := corpus.holding(screen, has):
            findings.append(finding(code, "warning", rows, told, what_to_do))
    if rows := corpus.holding(ENTITY):
        text = "{n} with HTML entities such as &amp; in the text."
        findings.append(finding("html_entities", "info", rows, text, "Decode them, unless HTML is the task."))
    return findings


ODDITIES: tuple[tuple[str, Has, str, str, str], ...] = (
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


def languages(corpus: Corpus) -> list[Finding]:
    """Conversations in another language than most."""
    looked = corpus.every(SAMPLE).conversations
    known = [(c.row, language) for c in looked if (language := language_of(_said(c)))]
    counts = Counter(language for _, language in known)
    if len(known) < ENOUGH or len(counts) < 2:
        return []
    (most, n), *others = counts.most_common()
    if n < MOST * len(known):
        return []
    rows = [row for row, language in known if language != most]
    listed = ", ".join(f"{name} {count:,}" for name, count in others[:3])
    of = f" (of {len(looked):,} looked at)" if len(looked) < len(corpus.conversations) else ""
    text = f"{{n}}{of} in another language than most, which are in {most}: {listed}."
    return [finding("languages", "info", rows, text, "Leave them out, unless the model shall answer in them too.")]


def language_of(text: str) -> str | None:
    """The script's, or of those in Latin letters the one whose frequent words occur most; None if that is not clear."""
    if not text.isascii():
        scripts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
        name, n = max(scripts.items(), key=lambda item: item[1])
        if n > 0.3 * len(text.replace(" ", "")):
            return "Japanese" if scripts["Japanese"] else name
    words = _WORD.findall(text.lower())
    if len(words) < WORDS:
        return None
    votes = Counter(name for word in words for name in _WORDS.get(word, ()))
    best = votes.most_common(2)
    clear = best and best[0][1] >= 3 and (len(best) == 1 or best[0][1] >= 2 * best[1][1])
    return best[0][0] if clear else None


def _said(conversation: Conversation) -> str:
    """The last question, which is seldom SQL or JSON, and the answer."""
    return " ".join(t.content[-250:] for t in conversation.turns[-2:])
