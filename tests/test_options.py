"""USING's values in typed options, whatever kind of class a handler declares them with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import pytest

from sqlft import plugins
from sqlft.errors import OptionError
from sqlft.handler import Alias, LengthOptions, NoOptions, Range, SamplingOptions, Secret, read_options
from sqlft.options import (
    ASKING,
    TRAINING,
    build_options,
    check_option_names,
    document_options,
    is_secret,
    option_names,
    pick_options,
)
from sqlft.session import ModelSettings, TrainSettings

OPTIONS = ("engine_options", "model_options", "predict_options", "train_options")


@dataclass
class Usual:
    """A handler's options."""

    rate: Annotated[float, "how fast", Range(0, 2)] = 0.5
    size: Annotated[int | None, "how large", Alias("width")] = None
    stop: Annotated[list[str] | None, "where to stop"] = None
    kind: Literal["a", "b"] = "a"
    on: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    key: Annotated[str | None, "the key", Secret("USUAL_KEY")] = None


class Bare:
    rate: float = 0.5
    size: int | None = None


class Named(NamedTuple):
    rate: float = 0.5


class Typed(TypedDict, total=False):
    rate: float


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"rate": 1}, "rate", 1.0),
        ({"rate": "0.25"}, "rate", 0.25),
        ({"width": 3}, "size", 3),
        ({"size": 3.0}, "size", 3),
        ({"size": None}, "size", None),
        ({"stop": ";"}, "stop", [";"]),
        ({"stop": ["a", "b"]}, "stop", ["a", "b"]),
        ({"kind": "B"}, "kind", "b"),
        ({"on": "true"}, "on", True),
        ({"on": 1}, "on", True),
        ({"extra": {"a": [1]}}, "extra", {"a": [1]}),
    ],
)
def test_values_are_fitted(given: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(build_options(Usual, given, "It"), name) == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rat": 1}, "Did you mean 'rate'"),
        ({"rate": 3}, "between 0 and 2"),
        ({"rate": "fast"}, "must be number"),
        ({"rate": float("nan")}, "must be number"),
        ({"rate": True}, "must be number"),
        ({"size": 1.5}, "must be integer"),
        ({"kind": "c"}, "'a' or 'b'"),
        ({"on": "perhaps"}, "true or false"),
        ({"extra": 1}, "must be object"),
        ({"rate": None}, "must be number"),
    ],
)
def test_what_does_not_fit_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        build_options(Usual, given, "It")


def test_any_annotated_class_will_do() -> None:
    assert build_options(Bare, {"rate": 1}, "It").rate == 1.0
    assert build_options(Bare, {}, "It").size is None
    assert build_options(Named, {"rate": 1}, "It") == Named(1.0)
    assert build_options(Typed, {"rate": 1}, "It") == {"rate": 1.0}
    assert build_options(dict, {"any": 1}, "It") == {"any": 1}
    assert build_options(NoOptions, {}, "It") == NoOptions()
    with pytest.raises(OptionError, match="takes no options"):
        build_options(NoOptions, {"a": 1}, "It")


def test_a_missing_option_is_asked_for() -> None:
    @dataclass
    class Needs:
        base: Annotated[str, "what to start from"]

    with pytest.raises(OptionError, match="needs the option 'base'") as caught:
        build_options(Needs, {}, "It")
    assert "what to start from" in caught.value.next_step


def test_a_classes_own_check_is_an_option_error() -> None:
    @dataclass
    class Checks:
        rate: float = 1.0

        def __post_init__(self) -> None:
            raise RuntimeError("never like this")

    with pytest.raises(OptionError, match="never like this"):
        build_options(Checks, {}, "It")


def test_secrets_are_known_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USUAL_KEY", "from outside")
    assert build_options(Usual, {}, "It").key == "from outside"
    assert is_secret("key", Usual)
    assert is_secret("openai_api_key")
    assert not is_secret("rate", Usual)
    with pytest.raises(OptionError) as caught:
        build_options(Usual, {"key": ["canary"]}, "It")
    assert "canary" not in str(caught.value)


def test_names_and_documentation() -> None:
    assert option_names(Usual) >= {"rate", "size", "width"}
    assert pick_options({"rate": 1, "other": 2}, Usual) == {"rate": 1}
    assert ("rate", "number", "0.5", "how fast") in list(document_options(Usual))


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("lr", {"r", "learning_rate"}, "Here it is 'learning_rate'"),
        ("lr", {"learning_rate_multiplier", "n_epochs"}, "Here it is 'learning_rate_multiplier'"),
        ("num_train_epochs", {"n_epochs"}, "Here it is 'n_epochs'"),
        ("LORA-RANK", {"r"}, "Here it is 'r'"),
        ("optim", {"r"}, "AdamW"),
        ("load_in_4bit", {"r"}, "quantization = 'nf4'"),
        ("gradient_accumulation_steps", {"batch_size"}, "memory"),
        ("max_length", {"max_tokens"}, "Here it is 'max_tokens'"),
        ("learnin_rate", {"learning_rate"}, "Did you mean 'learning_rate'"),
    ],
)
def test_other_tools_names_are_told_as_what_they_are_here(name: str, known: set[str], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_option_names([name], known, "FINETUNE m")
    assert words in str(caught.value)
    assert caught.value.next_step


def test_other_tools_names_lead_to_options_that_there_are() -> None:
    classes = [plugins.load_handler_class(n) for n in plugins.find_entry_points()]
    there = {n for c in classes for part in OPTIONS for n in option_names(getattr(c, part, NoOptions))}
    there |= option_names(TrainSettings, ModelSettings)
    for other in (*TRAINING, *ASKING):
        assert set(other.own_names) <= there
        assert other.own_names or other.note
        if not other.note:
            assert not set(other.names[:1]) & set(other.own_names[:1])


def test_options_that_the_core_reads_are_found_inherited_or_by_name() -> None:
    @dataclass
    class Inherits(SamplingOptions):
        max_tokens: Annotated[int, "most tokens"] = 16

    @dataclass
    class Names:
        max_new_tokens: int | None = 8
        temperature: float | None = None

    inherits = Inherits()
    assert read_options(SamplingOptions, inherits) is inherits
    assert read_options(SamplingOptions, Names()) == SamplingOptions(max_tokens=8, temperature=None)
    assert read_options(SamplingOptions, {}) == SamplingOptions()
    assert read_options(LengthOptions, NoOptions()).max_length is None
