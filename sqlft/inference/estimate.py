"""What asking will take, before it is asked: tokens, USD and seconds, each between a low and a high figure.

Prompts are counted by the handler where it can, else by the tokens that a character was in earlier statements of the
version.  Answers are as long as earlier ones of the version were, which the cache has one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low, stdev
from typing import NamedTuple

from sqlft.catalog.records import Usage
from sqlft.handler import (
    TOKENS_PER_MESSAGE,
    CountsPromptTokens,
    Message,
    SamplingOptions,
    estimate_tokens,
    read_options,
)
from sqlft.inference.cache import AnswerLengths, Cache
from sqlft.inference.prices import Pricing, find_pricing
from sqlft.inference.resolve import ResolvedVersion, check_retirement, count_tokens
from sqlft.metrics.statistics import Z
from sqlft.session import Session

SAMPLE_PROMPTS = 2000
"""Prompts that are counted; of more, evenly chosen ones stand for all."""
MAX_TEMPLATE_TOKENS = 32
"""Tokens that a format may add to each prompt beyond that, such as a system message of its own."""
DEFAULT_ANSWER_TOKENS, MAX_DEFAULT_ANSWER_TOKENS = 64, 1024
"""Tokens of an answer where nothing was ever answered, and the most, if max_tokens allows as many."""
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % points of Student's t for 1, 2, … degrees of freedom; 2.1 is near enough above.

With 1.96 for all, intervals from 2, 3 and 5 earlier answers of lognormal lengths hold 68, 77 and 84 times of 100; with
these 97, 92 and 92 times.
"""


class Interval(NamedTuple):
    """A figure with its 95 % interval; exact where all three are equal."""

    low: float
    expected: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether it is known."""
        return self.low == self.high

    def times(self, low: float, expected: float | None = None, high: float | None = None) -> Interval:
        """Each figure multiplied."""
        middle = low if expected is None else expected
        return Interval(self.low * low, self.expected * middle, self.high * (middle if high is None else high))

    def plus(self, other: Interval) -> Interval:
        """The sum, as if both were high or low together."""
        return Interval(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class InferenceEstimate:
    """What one model of a query will take; None is not known."""

    rows: int
    prompts: int
    cached: int
    asked: Interval
    input_tokens: Interval
    output_tokens: Interval
    cost_usd: Interval | None
    seconds: Interval | None
    earlier: int
    """Earlier answers, whose lengths the estimate is made from."""
    counted: str
    """How the prompts' tokens were estimated: by the handler, from earlier statements, by their length."""


def estimate_inference(
    session: Session,
    cache: Cache,
    resolved: ResolvedVersion,
    options: object,
    rows: int,
    prompts: int,
    waiting: Sequence[Sequence[Message]],
    least: int | None = None,
) -> InferenceEstimate:
    """What asking `waiting` prompts will take, of `prompts` distinct ones read; `least` if it may stop earlier.

    Warns of what ends of the model; NotSupported where it has ended.
    """
    check_retirement(session, resolved.handler, resolved.spec, resolved.artifact)
    name, most = str(resolved.version.key), len(waiting)
    used = [u for u in session.catalog.usage() if u.version == resolved.version.key and u.calls > 0]
    low = most if least is None else min(least, most)
    asked = Interval(low, (low + most) / 2, most)
    share = (low / most, asked.expected / most, 1.0) if most else (1.0, 1.0, 1.0)
    input_tokens, counted = _estimate_input_tokens(resolved, waiting, used)
    lengths = _find_answer_lengths(cache, resolved, name, used)
    output_tokens = _estimate_output_tokens(lengths, most, read_options(SamplingOptions, options).max_tokens)
    seconds = _estimate_seconds(used, most)
    pricing = find_pricing(session, resolved)
    input_tokens, output_tokens = input_tokens.times(*share), output_tokens.times(*share)
    seconds = None if seconds is None else seconds.times(*share)
    cost = Interval(0.0, 0.0, 0.0) if not most else _estimate_cost(pricing, input_tokens, output_tokens, seconds)
    return InferenceEstimate(
        rows, prompts, prompts - most, asked, input_tokens, output_tokens, cost, seconds, lengths.answers, counted
    )


def estimate_unseen_prompts(
    session: Session, cache: Cache, resolved: ResolvedVersion, options: object, rows: int, likely: int, most: int
) -> InferenceEstimate:
    """What asking will take where prompts need answers of another model: none to `most`, about `likely`."""
    check_retirement(session, resolved.handler, resolved.spec, resolved.artifact)
    used = [u for u in session.catalog.usage() if u.version == resolved.version.key and u.calls > 0]
    calls = sum(u.calls for u in used)
    frame = estimate_tokens(resolved.prompt.template) + DEFAULT_ANSWER_TOKENS
    each = sum(u.input_tokens for u in used) / calls if calls else frame
    asked = Interval(0, min(likely, most), most)
    lengths = _find_answer_lengths(cache, resolved, str(resolved.version.key), used)
    shares = (0.0, asked.expected / most, 1.0) if most else (1.0, 1.0, 1.0)
    input_tokens = Interval(each * most / 4, each * most, each * most * 4).times(*shares)
    output_tokens = _estimate_output_tokens(lengths, most, read_options(SamplingOptions, options).max_tokens).times(
        *shares
    )
    earlier_seconds = _estimate_seconds(used, most)
    seconds = None if earlier_seconds is None else earlier_seconds.times(*shares)
    cost = _estimate_cost(find_pricing(session, resolved), input_tokens, output_tokens, seconds)
    return InferenceEstimate(
        rows, 0, 0, asked, input_tokens, output_tokens, cost, seconds, lengths.answers, "without having seen them"
    )


def _estimate_input_tokens(
    resolved: ResolvedVersion, waiting: Sequence[Sequence[Message]], used: list[Usage]
) -> tuple[Interval, str]:
    sample, scale = _sample_evenly(waiting)
    if not sample:
        return Interval(0, 0, 0), "counted"
    handler = resolved.handler
    counted = handler.count_prompt_tokens(sample, resolved.spec) if isinstance(handler, CountsPromptTokens) else None
    if counted is not None:
        return _extrapolate_sum([float(c) for c in counted], scale), "counted"
    frames = [TOKENS_PER_MESSAGE * (len(messages) + 1) for messages in sample]
    texts = count_tokens(handler, [m.content for messages in sample for m in messages], resolved.spec)
    if texts is not None:
        counts = iter(texts)
        totals = [f + sum(next(counts) for _ in messages) for f, messages in zip(frames, sample, strict=True)]
        return _extrapolate_sum(totals, scale).times(0.8, 1.0, 1.2), "counted without the chat's frame"
    chars = [sum(len(m.content) for m in messages) for messages in sample]
    counted_usage = [u for u in used if u.input_chars > 0 and u.input_tokens > 0]
    if counted_usage:
        return _scale_earlier_usage(counted_usage, sum(chars) * scale, len(waiting)), "as before"
    texts = [sum(estimate_tokens(m.content) for m in messages) for messages in sample]
    guessed = [float(t + f) for t, f in zip(texts, frames, strict=True)]
    low, about, high = _extrapolate_sum(guessed, scale).times(0.5, 1.0, 2.0)
    return Interval(low, about, high + MAX_TEMPLATE_TOKENS * len(sample) * scale), "by length"


def _scale_earlier_usage(known: list[Usage], chars: float, prompts: int) -> Interval:
    """Between tokens per character and tokens per prompt, as earlier statements had them."""
    tokens = sum(u.input_tokens for u in known)
    estimates = [tokens / sum(u.input_chars for u in known) * chars, tokens / sum(u.calls for u in known) * prompts]
    each = [u.input_tokens / u.input_chars * chars for u in known]
    wide = 0.15 if len(known) < 3 else 0.05
    return Interval(min(*estimates, *each) * (1 - wide), estimates[0], max(*estimates, *each) * (1 + wide))


def _sample_evenly(waiting: Sequence[Sequence[Message]]) -> tuple[list[Sequence[Message]], float]:
    if len(waiting) <= SAMPLE_PROMPTS:
        return list(waiting), 1.0
    step = len(waiting) / SAMPLE_PROMPTS
    return [waiting[int(i * step)] for i in range(SAMPLE_PROMPTS)], step


def _extrapolate_sum(counts: Sequence[float], scale: float) -> Interval:
    """Their sum; where they stand for more, with the interval that follows from how they differ."""
    total = sum(counts)
    if scale == 1.0:
        return Interval(round(total), round(total), round(total))
    off = Z * stdev(counts) * scale * math.sqrt(len(counts))
    return Interval(max(0.0, total * scale - off), total * scale, total * scale + off)


def _find_answer_lengths(cache: Cache, resolved: ResolvedVersion, name: str, used: list[Usage]) -> AnswerLengths:
    """Tokens of earlier answers: the version's own, else those of the model's other versions, which differ more."""
    own_lengths = cache.lengths(name)
    if own_lengths.answers:
        return own_lengths
    used = [u for u in used if u.output_tokens > 0]
    answers = sum(u.calls - u.errors for u in used)
    if answers > 0:
        mean = sum(u.output_tokens for u in used) / answers
        return AnswerLengths(answers, mean, (mean / 2) ** 2)
    other_lengths = cache.lengths(resolved.model.key.name, versions=True)
    return (
        AnswerLengths(1, other_lengths.mean, other_lengths.variance + other_lengths.mean**2)
        if other_lengths.answers
        else AnswerLengths(0, 0.0, 0.0)
    )


def _estimate_output_tokens(lengths: AnswerLengths, count: int, most: int | None) -> Interval:
    """Tokens of `count` answers: a prediction interval for their sum."""
    cap = math.inf if most is None else float(most)
    if not count:
        return Interval(0, 0, 0)
    if not lengths.answers:
        return Interval(count, count * min(cap, DEFAULT_ANSWER_TOKENS), count * min(cap, MAX_DEFAULT_ANSWER_TOKENS))
    mean = min(lengths.mean, cap)
    spread = math.sqrt(lengths.variance) if lengths.answers > 1 else max(mean, math.sqrt(lengths.variance))
    spread = max(spread, 0.1 * mean, 0.5)
    t = STUDENT_T[lengths.answers - 2] if 2 <= lengths.answers <= len(STUDENT_T) + 1 else 2.1
    off = t * spread * math.sqrt(count + count**2 / lengths.answers)
    high = min(count * cap, count * mean + off)
    return Interval(min(high, max(float(count), count * mean - off)), count * mean, high)


def _estimate_seconds(used: list[Usage], count: int) -> Interval | None:
    """From what a call took in earlier statements; the machine may be busier or idler now.

    The middle one tells, not the mean: a statement that loaded the weights, or fetched them, may have taken a hundred
    times as long.  If there was but one, it may be that one.
    """
    if not count:
        return Interval(0, 0, 0)
    if not used:
        return None
    each = [u.seconds / u.calls for u in used]
    return Interval(count * min(each) / (2 if len(each) > 1 else 50), count * median_low(each), count * max(each) * 2)


def _estimate_cost(
    pricing: Pricing, input_tokens: Interval, output_tokens: Interval, seconds: Interval | None
) -> Interval | None:
    if not pricing.is_per_token:
        rate = pricing.cost_of_seconds(1.0)
        if rate == 0.0:
            return Interval(0.0, 0.0, 0.0)
        return None if rate is None or seconds is None else seconds.times(rate)
    parts = [pricing.cost_of_tokens(round(g), round(m)) for g, m in zip(input_tokens, output_tokens, strict=True)]
    known = [part for part in parts if part is not None]
    return Interval(*known) if len(known) == len(parts) else None
