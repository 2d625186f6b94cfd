"""Providers and models that end: warned of before the day, refused from that day on.

`handler` asks here by the host that requests go to, so a server of one's own under an old name is left alone.
The table of docs/providers.md is generated from SUNSETS.  A model that no row names is taken to live.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import NamedTuple

from sqlft.handler import Notice

CHECKED_ON = date(2026, 11, 28)
"""When the sources were last read."""
OTHER_TRAINERS = (
    "These go on training: engine = 'local' on your own machine, 'together', 'fireworks', and Nebius Token Factory "
    "(engine = 'openai_compatible', base_url = 'https://api.tokenfactory.nebius.com/v1')."
)
OPENAI_SOURCE = "https://developers.openai.com/api/docs/deprecations"
SNAPSHOT_SUFFIX = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4}(-preview)?)$")
"""What a dated name has behind its family's."""


class Sunset(NamedTuple):
    """What ends at one provider; a day is the first one on which it is gone."""

    provider: str
    hosts: str
    """A regular expression that the end of the host matches."""
    source: str
    models: tuple[str, ...] = ()
    """Families, or single snapshots, whose tuned versions end with them; none: all models."""
    trains_until: date | None = None
    asks_until: date | None = None
    instead: str = ""
    """A model to ask in place of these, that has no such day."""
    note: str = ""
    tunes: tuple[str, ...] = ()
    """Families that may be trained while it trains; none: whatever it has."""
    is_earliest: bool = False
    """The provider promises the days at least: nothing is refused after them."""


OPENAI_HOST = r"(^|\.)api\.openai\.com"
AZURE_HOST = r"\.(openai|cognitiveservices|services\.ai)\.azure\.com"

SUNSETS = (
    Sunset(
        "OpenAI",
        OPENAI_HOST,
        OPENAI_SOURCE,
        trains_until=date(2027, 1, 6),
        tunes=("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini"),
        note="only organizations that used tuned models shortly before 2026-07-02 may still train",
    ),
    Sunset(
        "OpenAI",
        OPENAI_HOST,
        OPENAI_SOURCE,
        (
            *("gpt-4o-2024-05-13", "gpt-3.5-turbo", "gpt-4", "gpt-4-turbo", "gpt-4.1-nano"),
            *("o1", "o1-pro", "o3-mini", "o4-mini"),
        ),
        asks_until=date(2026, 10, 23),
        instead="gpt-6-luna",
    ),
    Sunset(
        "OpenAI",
        OPENAI_HOST,
        OPENAI_SOURCE,
        ("gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5-pro", "o3", "o3-pro"),
        asks_until=date(2026, 12, 11),
        instead="gpt-6-luna",
    ),
    Sunset(
        "OpenAI",
        OPENAI_HOST,
        OPENAI_SOURCE,
        ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini"),
        asks_until=date(2027, 1, 14),
        instead="gpt-6-luna",
    ),
    Sunset(
        "OpenAI",
        OPENAI_HOST,
        OPENAI_SOURCE,
        ("gpt-5.1", "gpt-5.3-codex", "gpt-5.4-nano"),
        asks_until=date(2027, 4, 1),
        instead="gpt-6-luna",
    ),
    Sunset(
        "Azure OpenAI",
        AZURE_HOST,
        "https://learn.microsoft.com/azure/ai-foundry/openai/concepts/model-retirements",
        ("gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"),
        trains_until=date(2027, 4, 14),
        asks_until=date(2027, 10, 14),
        note="training ended for new customers on 2026-10-14; the second day is that of deployments of tuned models",
        is_earliest=True,
    ),
    Sunset(
        "Anyscale Endpoints",
        r"(^|\.)endpoints\.anyscale\.com",
        "https://github.com/mindsdb/mindsdb/pull/11356",
        trains_until=date(2024, 8, 1),
        asks_until=date(2024, 8, 1),
        note="`anyscale_endpoints` is for other servers that speak as it did, at your `base_url`",
    ),
    Sunset(
        "Cohere",
        r"(^|\.)api\.cohere\.(ai|com)",
        "https://docs.cohere.com/docs/deprecations",
        trains_until=date(2025, 9, 15),
    ),
    Sunset(
        "Mistral",
        r"(^|\.)api\.mistral\.ai",
        "https://docs.mistral.ai/resources/deprecated",
        note="its fine-tuning API is deprecated, without a day",
    ),
)


def today() -> date:
    """The day that decides between a warning and a refusal; tests put another in its place."""
    return datetime.now(UTC).date()


def find_notice(host: str, model: str, *, training: bool) -> Notice | None:
    """What a user should know before a model of this host is asked or trained."""
    sunsets = [s for s in SUNSETS if re.search(f"{s.hosts}$", host) and _concerns(s, model)]
    end = next((s for s in sunsets if s.asks_until), None)
    parts = [_describe_end(end, model, end.asks_until)] if end and end.asks_until else []
    if not training:
        return _join_notices(parts, _suggest_replacement(end))
    return _join_notices(
        [_describe_training_end(s, model) for s in sunsets if _ends_training(s)] + parts, OTHER_TRAINERS
    )


def explain_ended_model(host: str, model: str) -> str | None:
    """Why the provider has a model no more, and what to ask in its place; None where it should have it."""
    notice = find_notice(host, model, training=False)
    return f"{notice.text} {notice.next_step}" if notice is not None and notice.is_refusal else None


def get_model_family(model: str) -> str:
    """The name without what marks a tuned model: `ft:gpt-4o-2024-08-06:org::id` is gpt-4o-2024-08-06."""
    return model.removeprefix("ft:").partition(":")[0].partition(".ft-")[0].lower()


def _concerns(sunset: Sunset, model: str) -> bool:
    family = get_model_family(model)
    single = any(family in s.models for s in SUNSETS if s.provider == sunset.provider)
    return not sunset.models or (family if single else SNAPSHOT_SUFFIX.sub("", family)) in sunset.models


def _ends_training(sunset: Sunset) -> bool:
    return sunset.trains_until is not None or sunset.asks_until is None


def _describe_end(sunset: Sunset, model: str, day: date) -> tuple[str, bool]:
    """(the sentence, whether it is a refusal)."""
    what = f"the model '{get_model_family(model)}' and what was tuned from it" if sunset.models else "everything"
    if sunset.is_earliest:
        return f"{sunset.provider} keeps {what} until {day} at least.", False
    if today() < day:
        return f"{sunset.provider} switches off {what} on {day}, {_format_days_until(day)} from now.", False
    return f"{sunset.provider} switched off {what} on {day}.", True


def _describe_training_end(sunset: Sunset, model: str) -> tuple[str, bool]:
    day, note = sunset.trains_until, f" ({sunset.note})" if sunset.note else ""
    if day is None:
        return f"{sunset.provider} gives its fine-tuning up{note}.", False
    if sunset.is_earliest:
        return f"{sunset.provider} trains '{get_model_family(model)}' until {day} at least{note}.", False
    if today() < day and sunset.tunes and SNAPSHOT_SUFFIX.sub("", get_model_family(model)) not in sunset.tunes:
        return (
            f"{sunset.provider} does not train '{get_model_family(model)}': it trains {', '.join(sunset.tunes)}, "
            f"and takes no new jobs from {day}{note}.",
            True,
        )
    if today() < day:
        return (
            f"{sunset.provider} takes no new fine-tuning jobs from {day}, {_format_days_until(day)} from now{note}.",
            False,
        )
    return f"{sunset.provider} has taken no new fine-tuning jobs since {day}.", True


def _format_days_until(day: date) -> str:
    days = (day - today()).days
    return f"{days} day{'s'[: days != 1]}"


def _suggest_replacement(sunset: Sunset | None) -> str:
    if sunset is None or not sunset.instead:
        return "SHOW HANDLERS lists the others; engine = 'local' asks on your own machine."
    return f"'{sunset.instead}' goes on there: CREATE MODEL … USING model_name = '{sunset.instead}'."


def _join_notices(parts: list[tuple[str, bool]], next_step: str) -> Notice | None:
    if not parts:
        return None
    return Notice(" ".join(text for text, _ in parts), next_step, any(refused for _, refused in parts))
