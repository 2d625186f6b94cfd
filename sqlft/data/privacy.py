"""What looks like a key, a password or a person's address in training texts, and texts without it."""

from __future__ import annotations

import re
from collections.abc import Callable

from sqlft.redact import KEY_FORMS, KEY_SCREEN

NumberCheck = Callable[[str], bool]

PASSWORDS = re.compile(
    r"\b(?:password|passwd|pwd|passphrase|api[_-]?key|secret[_-]?key|access[_-]?token)\b"
    r"['\"]?[ \t]*(?:[:=]|\bis\b)[ \t]*['\"]?(?=[^\s'\"]*[0-9])[^\s'\",;)]{8,}"
    r"|\b[a-z][a-z0-9+]*://[^\s:/@]+:[^\s:/@]{3,}@[\w.-]+",
    re.IGNORECASE,
)
EMAILS = re.compile(r"\b[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b")
PHONES = re.compile(
    r"(?<![\w.+-])\+\d{1,3}(?:[ .-]?\(?\d{2,4}\)?){2,5}(?![\w-])|(?<![\w-])\(\d{3}\) ?\d{3}-\d{4}(?![\w-])"
)
CARDS = re.compile(r"(?<![\w.-])\d{4}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\w.-])")
IBANS = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
SOCIAL_SECURITY_NUMBERS = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
SHOWN_KEY_CHARACTERS = 4
"""Characters of a key that are still shown."""


PASSWORD_SCREEN = r"(?i)(?:pass|pwd|key|token)[a-z_-]*['\"]?[ \t]*(?:[:=]|is\b)|://[^\s:/@]+:[^\s:/@]+@"
PERSONAL_SCREEN = r"@|\+\d|\(\d{3}\) ?\d{3}-|\d{4}[ -]?\d{4}[ -]?\d{4}|\b[A-Z]{2}\d{2} ?[A-Z0-9]{4}|\d{3}-\d{2}-\d{4}"
"""What each of those must hold, as KEY_SCREEN is for keys: for Arrow's regexes, which are faster and know less."""


def find_keys(text: str) -> list[str]:
    """What looks like a provider's key or a private key."""
    return KEY_FORMS.findall(text) if _may_hold_key(text) else []


def find_passwords(text: str) -> list[str]:
    """`password = …` and addresses with a password in them."""
    return [m.group() for m in PASSWORDS.finditer(text)] if ":" in text or "=" in text or " is " in text else []


def find_personal_data(text: str) -> dict[str, list[str]]:
    """E-mail addresses, telephone, card, account and social security numbers, by kind."""
    text = PASSWORDS.sub(" ", text) if "://" in text else text
    found = {"e-mail address": EMAILS.findall(text) if "@" in text else []}
    if any(c.isdigit() for c in text):
        found["telephone number"] = [m.group() for m in PHONES.finditer(text)]
        found["card number"] = [m.group() for m in CARDS.finditer(text) if _is_card_number(m.group())]
        found["bank account"] = [m.group() for m in IBANS.finditer(text) if _is_iban(m.group())]
        found["social security number"] = SOCIAL_SECURITY_NUMBERS.findall(text)
    return {kind: values for kind, values in found.items() if values}


def mask_private(text: str) -> str:
    """The text with all of that made unreadable."""
    if _may_hold_key(text):
        text = KEY_FORMS.sub(lambda m: m.group()[:SHOWN_KEY_CHARACTERS] + "****", text)
    text = PASSWORDS.sub(_mask_password, text)
    if "@" in text:
        text = EMAILS.sub(lambda m: f"{m.group()[0]}***@***.{m.group().rpartition('.')[2]}", text)
    for pattern, is_one in _NUMBERS:
        found = {m.group() for m in pattern.finditer(text)}
        for number in filter(is_one, found):
            text = text.replace(number, _mask_number(number))
    return text


def _may_hold_key(text: str) -> bool:
    return re.search(KEY_SCREEN, text) is not None


def _mask_password(match: re.Match[str]) -> str:
    text = match.group()
    if "://" in text:
        return re.sub(r":[^:/@]+@", ":****@", text)
    head = re.match(r".*?(?:[:=]|\bis\b)\s*['\"]?", text, re.IGNORECASE | re.DOTALL)
    return f"{head.group() if head else ''}****"


def _mask_number(number: str) -> str:
    """All digits and letters but the last two as stars."""
    return re.sub(r"\w", "*", number[:-2]) + number[-2:]


def _is_card_number(text: str) -> bool:
    """By Luhn's check digit."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """An IBAN by its check digits, ISO 13616."""
    packed = text.replace(" ", "")
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


_NUMBERS: tuple[tuple[re.Pattern[str], NumberCheck], ...] = (
    (PHONES, lambda _: True),
    (CARDS, _is_card_number),
    (IBANS, _is_iban),
    (SOCIAL_SECURITY_NUMBERS, lambda _: True),
)
