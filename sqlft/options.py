"""USING (…) -> typed options: a dataclass a handler declares, filled, checked and documented."""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    SupportsFloat,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from sqlft.errors import OptionError, did_you_mean
from sqlft.handler import Alias, Delivery, Range, Secret, Unordered
from sqlft.redact import SECRET_WORDS, remember_secret

MISSING = object()
T = TypeVar("T")


class Env(NamedTuple):
    """`env('NAME')`: a secret that stays in the environment."""

    name: str


class Option(NamedTuple):
    """One field of an options class."""

    name: str
    type: object
    doc: str
    default: object
    aliases: tuple[str, ...]
    range: Range | None
    secret: Secret | None
    delivery: bool = False
    unordered: bool = False

    @property
    def type_name(self) -> str:
        """The type as the documentation shows it."""
        return _format_type(self.type)


_options_by_class: dict[type, Mapping[str, Option]] = {}


def options_of(cls: type) -> Mapping[str, Option]:
    """The options a class declares, by name; any annotated class will do, a dataclass is usual."""
    if cls not in _options_by_class:
        _options_by_class[cls] = _read_options(cls)
    return _options_by_class[cls]


def _read_options(cls: type) -> Mapping[str, Option]:
    if cls in (object, dict) or not isinstance(cls, type):
        return {}
    hints = get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    return {
        name: _read_option(name, hint, fields.get(name), cls)
        for name, hint in hints.items()
        if not name.startswith("_")
    }


def option_names(*classes: type) -> set[str]:
    """Every name and alias that the classes take."""
    options = [o for c in classes for o in options_of(c).values()]
    return {o.name for o in options} | {a for o in options for a in o.aliases}


def is_secret(name: str, *classes: type) -> bool:
    """Whether an option's value must never be shown."""
    declared = {n: o for c in classes for o in options_of(c).values() for n in (o.name, *o.aliases)}
    if name in declared and declared[name].secret:
        return True
    return any(word in name.lower() for word in SECRET_WORDS)


def check_option_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """OptionError for the first key that nobody takes, with the nearest one that somebody does."""
    known = sorted(set(known))
    for name in names:
        if name not in known:
            takes = f"It takes: {', '.join(known)}." if known else "It takes no options."
            hint, next_step = suggest_option(name, known) or (did_you_mean(name, known), takes)
            raise OptionError(f"{what} has no option '{name}'.{hint}", next_step)


def pick_options(given: Mapping[str, object], *classes: type) -> dict[str, object]:
    """The part of `given` that the classes take."""
    names = option_names(*classes)
    return {k: v for k, v in given.items() if k in names or any(c is dict for c in classes)}


def resolve_aliases(given: Mapping[str, object], cls: type) -> dict[str, object]:
    """`given` with each option that the class takes under its own name in place of an alias."""
    by_alias = {alias: o.name for o in options_of(cls).values() for alias in o.aliases}
    return {by_alias.get(k, k): v for k, v in given.items()}


def drop_options(given: Mapping[str, object], *classes: type) -> dict[str, object]:
    """The part of `given` that the classes do not take."""
    names = option_names(*classes)
    return {k: v for k, v in given.items() if k not in names}


def pick_answer_options(given: Mapping[str, object], cls: type) -> dict[str, object]:
    """The part of `given` that changes answers: neither secrets nor how they are delivered."""
    silent = {n for o in options_of(cls).values() if o.delivery or o.secret for n in (o.name, *o.aliases)}
    return {k: v for k, v in order_lists(given, cls).items() if k not in silent}


def order_lists(given: Mapping[str, object], cls: type) -> dict[str, object]:
    """`given` with lists whose order changes no answer in one order, and a list of one as that one."""
    names = {n for o in options_of(cls).values() if o.unordered for n in (o.name, *o.aliases)}
    return {k: _order_list(v) if k in names and isinstance(v, list) else v for k, v in given.items()}


def _order_list(items: list[object]) -> object:
    return items[0] if len(items) == 1 else sorted(items, key=str)


def build_options(cls: type[T], given: Mapping[str, object], what: str) -> T:
    """An instance of `cls` from USING's values; OptionError says which value does not fit and why.

    A secret that is not given is taken from its usual environment variable.
    """
    for name, value in given.items():
        if is_secret(name, cls):
            remember_secret(value)
    if cls is dict:
        return cls(**given)
    declared = options_of(cls)
    by_name = {n: o for o in declared.values() for n in (o.name, *o.aliases)}
    check_option_names(given, by_name, what)
    values: dict[str, object] = {}
    for key, value in given.items():
        option = by_name[key]
        values[option.name] = _convert_option(option, value, what)
    for option in declared.values():
        variable = option.secret.env if option.secret else None
        if variable and option.name not in values and os.environ.get(variable):
            values[option.name] = os.environ[variable]
            remember_secret(values[option.name])
    for option in declared.values():
        if option.default is MISSING and option.name not in values:
            raise OptionError(
                f"{what} needs the option '{option.name}'.", f"Add: USING {option.name} = … ({option.doc})"
            )
    only_annotated = "__init__" not in _defined_names(cls) and "__new__" not in _defined_names(cls)
    try:
        return _fill_annotated(cls, declared, values) if only_annotated else cls(**values)
    except OptionError:
        raise
    except Exception as e:  # a check of the class's own
        raise OptionError(f"{what}: {e}", "Change the option's value.") from e


def _defined_names(cls: type) -> set[str]:
    """Names that the class and its bases, but object, define."""
    return {name for base in cls.__mro__ if base is not object for name in vars(base)}


def _fill_annotated(cls: type[T], declared: Mapping[str, Option], values: Mapping[str, object]) -> T:
    """An instance of a class that only has annotations."""
    instance = cls()
    for option in declared.values():
        setattr(instance, option.name, values.get(option.name, option.default))
    return instance


def document_options(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, documentation) of each field, for tables in the documentation."""
    for o in options_of(cls).values():
        default = "required" if o.default is MISSING else "" if o.default is None else _format_default(o.default)
        yield o.name, o.type_name, default, o.doc


def _read_option(name: str, hint: object, field: dataclasses.Field[object] | None, cls: type) -> Option:
    extras: tuple[object, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        extras = tuple(rest)
    if field is None:
        default = getattr(cls, name, MISSING)
    elif field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        default = MISSING
    return Option(
        name,
        hint,
        next((e for e in extras if isinstance(e, str)), ""),
        default,
        tuple(e.name for e in extras if isinstance(e, Alias)),
        next((e for e in extras if isinstance(e, Range)), None),
        next((e for e in extras if isinstance(e, Secret)), None),
        any(isinstance(e, Delivery) or e is Delivery for e in extras),
        any(isinstance(e, Unordered) for e in extras),
    )


def _convert_option(option: Option, value: object, what: str) -> object:
    try:
        fitted = _convert_value(option.type, value)
    except (TypeError, ValueError):
        shown = "a secret" if option.secret else repr(value)[:80]
        raise OptionError(
            f"{what}: '{option.name}' is {shown}, but must be {option.type_name}.",
            f"It means: {option.doc}" if option.doc else "Change its value.",
        ) from None
    low, high = option.range or Range()
    if isinstance(fitted, (int, float)) and (
        (low is not None and fitted < low) or (high is not None and fitted > high)
    ):
        bounds = (
            f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        )
        raise OptionError(f"{what}: '{option.name}' is {fitted}, but must be {bounds}.", f"It means: {option.doc}")
    return fitted


def _convert_value(kind: object, value: object) -> object:
    """`value` as `kind`, or TypeError/ValueError; only loss-free conversions."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        exact = [a for a in args if isinstance(a, type) and type(value) is a]
        for arm in exact or [a for a in args if a is not type(None)]:
            try:
                return _convert_value(arm, value)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if origin is Literal:
        folded = value.lower() if isinstance(value, str) else value
        for choice in args:
            if folded == choice or (isinstance(choice, str) and folded == choice.lower()):
                return choice
        raise ValueError
    if origin in (list, tuple):
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        fitted = [_convert_value(args[0], v) if args else v for v in items]
        return tuple(fitted) if origin is tuple else fitted
    if origin is dict or kind in (dict, Mapping) or origin is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError
    return _convert_scalar(kind, value)


def _convert_scalar(kind: object, value: object) -> object:
    if value is None:
        raise TypeError
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, (bool, int)) and value in (0, 1):
            return bool(value)
        raise TypeError
    if kind in (int, float):
        if isinstance(value, bool):
            raise TypeError
        if not isinstance(value, (str, SupportsFloat)):
            raise TypeError
        number = float(value)
        if kind is float:
            if number != number:
                raise ValueError
            return number
        if isinstance(value, int):
            return value
        if number != int(number):
            raise ValueError
        return int(number)
    if kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise TypeError
    if not callable(kind) or (isinstance(kind, type) and isinstance(value, kind)):
        return value
    return kind(value)


def _format_type(kind: object) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_format_type(a) for a in args if a is not type(None))
    if origin is Literal:
        return " or ".join(f"'{a}'" for a in args)
    if origin in (list, tuple):
        return f"list of {_format_type(args[0])}" if args else "list"
    names: dict[object, str] = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "object"}
    return names.get(kind) or names.get(origin) or str(getattr(kind, "__name__", kind))


def _format_default(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


class OtherName(NamedTuple):
    """One meaning, under the names that other tools have for it."""

    names: tuple[str, ...]
    own_names: tuple[str, ...] = ()
    """Options here, the likelier first; the first one that is taken is suggested."""
    note: str = ""
    """What to do where there is no such option, or what is different."""


_QUANTIZATION_NOTE = (
    "CREATE MODEL … USING quantization = 'nf4' (or 'int8') loads the base in 4 (or 8) bits, in training too."
)
_ALWAYS_DONE_NOTE = "Leave it out: it is done always."
_NO_EQUIVALENT_NOTE = "Leave it out: there is no such thing here."

TRAINING = (
    OtherName(("lr", "learn_rate", "learning_rate"), ("learning_rate", "learning_rate_multiplier")),
    OtherName(("learning_rate_multiplier",), ("learning_rate",)),
    OtherName(("num_train_epochs", "num_epochs", "epochs", "epoch_count", "nepochs", "max_iterations"), ("n_epochs",)),
    OtherName(
        ("per_device_train_batch_size", "micro_batch_size", "train_batch_size", "mini_batch_size", "bs"),
        ("batch_size",),
    ),
    OtherName(
        ("gradient_accumulation_steps", "gradient_accumulation", "accumulate_grad_batches"),
        (),
        "batch_size is the rows of a whole step; how many are computed at once follows from the memory.",
    ),
    OtherName(
        ("max_steps", "num_steps", "iters", "total_steps"), (), "n_epochs or max_minutes says how long it trains."
    ),
    OtherName(
        ("max_seq_length", "max_seq_len", "sequence_len", "seq_length", "cutoff_len", "model_max_length"),
        ("max_length",),
    ),
    OtherName(("rank", "lora_rank", "lora_r", "adapter_size", "lora_dim"), ("r",)),
    OtherName(("alpha", "lora_scale"), ("lora_alpha",)),
    OtherName(("dropout",), ("lora_dropout",)),
    OtherName(("lora_target_modules", "lora_target", "target_linear", "lora_target_linear"), ("target_modules",)),
    OtherName(
        ("warmup_ratio", "warmup_steps", "warmup_proportion", "lr_warmup_steps"),
        ("warmup",),
        "warmup is a share of the steps: 0.05 is a twentieth.",
    ),
    OtherName(
        ("lr_scheduler_type", "lr_scheduler", "scheduler", "learn_rate_strategy"),
        (),
        "Leave it out: the learning rate rises in `warmup`, then falls in a line to nothing.",
    ),
    OtherName(("optim", "optimizer", "optimiser"), (), "Leave it out: it is AdamW."),
    OtherName(("l2_reg", "l2_regularization"), ("weight_decay",)),
    OtherName(("clip_grad_norm", "gradient_clipping"), ("max_grad_norm",)),
    OtherName(("load_in_4bit", "load_in_8bit", "quantization_bit", "bnb_4bit_quant_type"), (), _QUANTIZATION_NOTE),
    OtherName(("bf16", "fp16", "fp32", "tf32", "torch_dtype"), ("dtype",), "CREATE MODEL … USING dtype = 'bfloat16'."),
    OtherName(("packing", "sample_packing", "group_by_length", "pad_to_sequence_len"), (), _ALWAYS_DONE_NOTE),
    OtherName(("use_gradient_checkpointing", "activation_checkpointing"), ("gradient_checkpointing",)),
    OtherName(("random_state", "random_seed", "data_seed"), ("seed",)),
    OtherName(
        ("val_set_size", "val_size", "eval_split", "test_size", "data_split_eval_fraction", "validation_fraction"),
        ("validation_split",),
    ),
    OtherName(
        ("validation_file", "validation_data", "eval_dataset", "eval_data", "evaluation_dataset"), ("validation",)
    ),
    OtherName(("early_stop", "early_stopping_patience", "patience"), ("early_stopping",)),
    OtherName(("save_steps", "checkpoint_every", "saves_per_epoch"), ("checkpoint_steps",)),
    OtherName(
        (
            "train_on_inputs",
            "train_on_prompt",
            "completion_only_loss",
            "assistant_only_loss",
            "train_on_responses_only",
        ),
        ("prompt_loss_weight",),
        "Answers alone are learned; prompt_loss_weight = 1 learns prompts too.",
    ),
    OtherName(("num_gpus", "n_gpus", "nproc_per_node", "devices"), ("num_processes",)),
    OtherName(("max_train_time", "time_limit", "max_time"), ("max_minutes",)),
    OtherName(
        ("report_to", "logging_steps", "logging_dir", "wandb_project", "run_name"),
        (),
        "Leave it out: sqlft.metrics and sqlft report have what was measured.",
    ),
    OtherName(
        ("output_dir", "output_model", "hub_model_id", "push_to_hub"),
        (),
        "Leave it out: the version is kept with the model, and asked as name.N.",
    ),
    OtherName(
        ("training_file", "train_dataset", "dataset", "datasets", "input_label_cols"),
        (),
        "The rows are a query: FINETUNE name FROM (SELECT …).",
    ),
    OtherName(
        ("hyperparameters",),
        (),
        "Give each by itself: USING n_epochs = 3, batch_size = 8, learning_rate_multiplier = 2.",
    ),
    OtherName(("training_type", "train_method", "tuning_method"), ("method",)),
    OtherName(("dpo_beta",), ("beta",)),
    OtherName(
        ("use_rslora", "use_dora", "loftq_config", "neftune_noise_alpha", "lora_modules_to_save"),
        (),
        _NO_EQUIVALENT_NOTE,
    ),
)
"""Options of training, as TRL, PEFT, Unsloth, axolotl, LLaMA-Factory, hosted providers and BigQuery have them."""

ASKING = (
    OtherName(
        ("model", "model_id", "model_name_or_path", "base_model", "pretrained_model_name_or_path", "remote_model"),
        ("model_name",),
    ),
    OtherName(
        ("json_struct", "json_schema", "response_format", "output_schema"),
        ("schema",),
        "schema = 'STRUCT(name VARCHAR, age INTEGER)', or PREDICT (name VARCHAR, age INTEGER).",
    ),
    OtherName(
        ("input_text", "input_column", "input_columns", "text_column", "content_column"),
        ("question_column",),
        "question_column = 'comment' asks with that column; prompt_template = '… {{comment}} …' with a text around it.",
    ),
    OtherName(("template", "prompt_text"), ("prompt_template",)),
    OtherName(("system_message", "instructions", "system_instruction"), ("system",)),
    OtherName(("max_output_tokens", "max_tokens_to_sample", "num_predict", "n_predict", "max_length"), ("max_tokens",)),
    OtherName(("stop_sequences", "stop_words", "stop_strings"), ("stop",)),
    OtherName(("temp",), ("temperature",)),
    OtherName(("num_ctx", "n_ctx", "max_context_length", "context_size"), ("context_length",)),
    OtherName(("endpoint", "url", "host", "api_url", "server_url", "ollama_serve_url"), ("base_url",)),
    OtherName(("key", "token", "api_token", "access_key"), ("api_key",)),
)
"""Options of models, engines and questions, as MindsDB, Ollama, OpenAI, Anthropic and BigQuery have them."""


def suggest_option(name: str, known: Container[str]) -> tuple[str, str] | None:
    """(what the option is called here, what to do) for another tool's name; None where it is none.

    >>> suggest_option("lr", {"learning_rate", "r"})
    (" Here it is 'learning_rate'.", 'Write learning_rate = …')
    >>> suggest_option("optim", {"r"})
    ('', 'Leave it out: it is AdamW.')
    """
    folded = name.lower().replace("-", "_")
    for other in (*TRAINING, *ASKING):
        if folded not in other.names:
            continue
        own_name = next((h for h in other.own_names if h in known), None)
        if own_name is not None or other.note:
            return (
                (f" Here it is '{own_name}'.", other.note or f"Write {own_name} = …") if own_name else ("", other.note)
            )
    return None
