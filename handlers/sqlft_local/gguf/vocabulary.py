"""A base's tokens as llama.cpp spells them, and how it cuts text into them.

Called by `write`.  In: the content of a tokenizer.json.  Out: keys of a file.  Where prompts come as ids, spelling is
all that counts; where llama.cpp itself cuts text, `pretokenizer` has found the name of the way in which it is to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from sqlft_local._types import JsonMapping

END_TOKEN_KEYS = ("eos", "eot", "eom")
SPECIAL_TOKEN_KEYS = {"bos": "bos", "unk": "unknown", "pad": "padding"}
WORD_START = "▁"


def write_vocabulary(
    writer: GGUFWriter, size: int, tokenizer: JsonMapping, stop_ids: list[int], pretokenizer: str
) -> None:
    """All tokens with their kinds; NotSupported for a tokenizer that llama.cpp has no like of."""
    from gguf import TokenType

    model = tokenizer["model"]
    if model.get("type") not in ("BPE", "Unigram") or len(stop_ids) > len(END_TOKEN_KEYS):
        raise NotSupported(
            f"llama.cpp files are not made of a {model.get('type')} tokenizer with {len(stop_ids)} end tokens here.",
            "Use backend = 'transformers'.",
        )
    vocabulary = model["vocab"] if model["type"] == "BPE" else {t: i for i, (t, _) in enumerate(model["vocab"])}
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [TokenType.UNUSED] * size
    for token, i in vocabulary.items():
        tokens[i] = token
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        types[i] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_merges(writer, model, size, pretokenizer)
    for key, i in zip(END_TOKEN_KEYS, stop_ids, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", i)


def _write_merges(writer: GGUFWriter, model: JsonMapping, size: int, pretokenizer: str) -> None:
    if model["type"] == "Unigram":
        writer.add_tokenizer_model("t5")
        writer.add_token_scores([score for _, score in model["vocab"]] + [0.0] * (size - len(model["vocab"])))
        return
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    if not model.get("byte_fallback"):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pretokenizer)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        return
    scores = [0.0] * size
    for rank, (left, right) in enumerate(reversed(merges)):
        if (i := model["vocab"].get(left + right)) is not None:
            scores[i] = float(rank - len(merges))
    writer.add_tokenizer_model("llama")
    writer.add_token_scores(scores)


def write_text_settings(writer: GGUFWriter, tokenizer: JsonMapping, special_ids: JsonMapping) -> None:
    """What a text is given before and behind it; `special_ids` are of SPECIAL_TOKEN_KEYS."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(tokenizer))
    with_special, plain = backend.encode("a").ids, backend.encode("a", add_special_tokens=False)
    writer.add_add_bos_token(with_special[0] != plain.ids[0])
    writer.add_add_eos_token(with_special[-1] != plain.ids[-1])
    writer.add_add_space_prefix(plain.tokens[0].startswith(WORD_START))
    for name, i in special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{SPECIAL_TOKEN_KEYS[name]}_token_id", i)


def read_special_ids(folder: Path, tokenizer: JsonMapping) -> dict[str, int]:
    """Which tokens begin a text, stand for what is unknown, and fill up."""
    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    ids = {added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())}
    found = {}
    for name in SPECIAL_TOKEN_KEYS:
        token = named.get(f"{name}_token")
        if isinstance(content := token.get("content") if isinstance(token, dict) else token, str) and content in ids:
            found[name] = ids[content]
    return found
