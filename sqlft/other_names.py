"""What other tools call an option, and what it is here: for errors, and for the table of docs/other-tools.md.

`check_option_names` asks here first, since the nearest name is often a wrong one: `lr` is near the rank, `r`.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple


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
    plain = name.lower().replace("-", "_")
    for other in (*TRAINING, *ASKING):
        if plain not in other.names:
            continue
        here = next((h for h in other.own_names if h in known), None)
        if here is not None or other.note:
            return (f" Here it is '{here}'.", other.note or f"Write {here} = …") if here else ("", other.note)
    return None
