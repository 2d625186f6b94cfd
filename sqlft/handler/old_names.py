"""Names that the contract had before: who uses one gets an error with the name of today.

Called by `sqlft.handler` where a handler makes a value, or a class of its own.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Self

from sqlft.errors import NotSupported, did_you_mean


class NamedFields:
    """For dataclasses that handlers make: a keyword that is no field is answered with the name that was meant."""

    def __new__(cls, *values: object, **named: object) -> Self:
        known = [f.name for f in fields(cls)] if is_dataclass(cls) else named
        for name in named:
            if name not in known:
                new_name = RENAMED_FIELDS.get((cls.__name__, name), "")
                guess = f" It is called '{new_name}' now." if new_name else did_you_mean(name, known)
                raise NotSupported(f"{cls.__name__} has no field '{name}'.{guess}", f"It has: {', '.join(known)}.")
        return super().__new__(cls)


RENAMED_FIELDS = {("Estimate", "refusal"): "why_not"}
"""Old names of the fields of what handlers make."""


RENAMED_METHODS = {
    "checkup": "diagnose",
    "count_prompts": "count_prompt_tokens",
    "settled": "resolve_options",
    "longest_row": "max_row_tokens",
    "rest": "drain",
}
"""Old names of the methods of a Handler, the last one of a Predictor, and what they are called now."""


def refuse_old_names(cls: type, *names: str) -> None:
    """NotSupported for a class that has a method, or `takes_adapters`, under its old name."""
    if hasattr(cls, "takes_adapters"):
        raise NotSupported(
            f"{cls.__name__} has 'takes_adapters', which sqlft does not read any more.",
            "Let it inherit sqlft.handler.LoadsAdapters in its place.",
        )
    for old in names:
        if hasattr(cls, old):
            raise NotSupported(
                f"{cls.__name__} has a method '{old}', which sqlft does not call any more.",
                f"Rename it: def {RENAMED_METHODS[old]}(…).",
            )
