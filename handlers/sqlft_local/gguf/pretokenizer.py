"""Which of llama.cpp's ways of cutting text into words is a tokenizer's own, found by trying them.

Called by `write` for a file that is given text.  llama.cpp knows tokenizers by name, each with regular expressions
that are compiled into it, and no file can bring others: the name is right whose tokens of `TEXTS` are the tokenizer's.
A process of its own tries (`python -m sqlft_local.gguf.pretokenizer FILE`), on files of a vocabulary and next to no
weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import NotSupported, ProviderError
from sqlft_local import machine
from sqlft_local.gguf.vocabulary import write_text_settings, write_vocabulary

if TYPE_CHECKING:
    from sqlft_local._types import JsonMapping

# fmt: off
NAMES = (
    "llama-bpe", "qwen2", "gpt-4o", "smollm", "gpt-2", "tekken", "qwen35", "lfm2", "glm4", "deepseek-v3", "command-r",
    "starcoder", "deepseek-llm", "deepseek-coder", "falcon", "falcon-h1", "refact", "olmo", "mpt", "dbrx", "stablelm2",
    "bloom", "chatglm-bpe", "exaone", "exaone4", "exaone-moe", "gemma4", "granite-docling", "hunyuan", "hunyuan-dense",
    "kimi-k2", "llama4", "minimax-m2", "seed-coder", "superbpe", "bailingmoe", "chameleon", "poro-chat", "viking",
    "jais", "jais2", "tiny_aya", "trillion", "youtu", "afmoe", "solar-open", "default",
)
# fmt: on
"""The names that llama.cpp takes, the most used first."""
TEXTS = (
    "Hello world, it's 5 o'clock; we'll see I'M, YOU'RE, don't, they've and 'quoted' \"words\".",
    "1 12 123 1234 12345 123456 1234567 3.14 1,000,000 2024-01-31 v2.0.1 0x1F 10% $99.90 ½ ² Ⅷ ٣٤٥",
    "  two   three    four\ttab\t\ttabs  end  ",
    "a\nb\n\nc\r\nd\n\n\n   e\n \n  f \n",
    "def f(x):\n    if x >= 10:\n        return {'a': x**2, \"b\": [1, 2]}  # done\n\n\nclass A(B):\n\tpass\n",
    "SELECT \"name\", count(*) FROM t1 WHERE a<>'x' AND b!=3 GROUP BY 1;--end /*c*/ (foo)[bar].baz/qux\\n_x__y",
    "camelCase PascalCase XMLHttpRequest snake_case UPPER lower McDonald iPhone12Pro",
    "naïve café Ünïcödé Straße œuvre e\u0301te\u0301 Ελληνικά Русский текст עברית العربية हिन्दी ไทย",
    "中文字符，测试。日本語テスト カタカナ ひらがな 한국어 문장 中1文2 漢字kanji混在",
    "😀 👍🏽 👨‍👩‍👧 ❤️ © ™ → ≤ ∑ … – — “quotes” ‘single’",
    "«guillemets» \u00a0nbsp\u3000wide\u200bzero",
    "<html><b>x</b></html> http://example.com/a?b=c&d=e user@example.com #tag @name ~/path C:\\dir ...!!! ???",
    "", " ", "\n", "\t", "   ", "\n\n\n", " \n", "a", " a", "  a", "é", "😀", "!", " !", "\u0301", "'s", " 's", "1 ",
)  # fmt: skip
SECONDS = 900


def find_pretokenizer(tokenizer: JsonMapping, special_ids: JsonMapping, stop_ids: list[int]) -> str:
    """The name; NotSupported where llama.cpp cuts text in another way under each."""
    given = {"tokenizer": tokenizer, "special_ids": special_ids, "stop_ids": stop_ids}
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "tokenizer.json"
        file.write_text(json.dumps(given), encoding="utf-8")
        command = machine.module_command("sqlft_local.gguf.pretokenizer", str(file))
        try:
            done = subprocess.run(
                command, env=machine.child_environment(), capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise ProviderError(
                f"llama.cpp did not read this base's tokenizer within {SECONDS} seconds.",
                "Try again when the machine is less busy.",
            ) from e
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise NotSupported(
            f"llama.cpp does not load this base's tokenizer ({done.stderr.strip()[-200:]}).", "Use FORMAT merged."
        )
    found, text = json.loads(lines[-1])
    if found is None:
        raise NotSupported(
            f"llama.cpp cuts text into other tokens than this base's tokenizer does, such as {text!r}.",
            "Use FORMAT merged.",
        )
    return str(found)


def try_names(given: JsonMapping) -> tuple[str | None, str]:
    """The first name that agrees, or None and a text on which the best one does not."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(given["tokenizer"]))
    controls = "".join(added["content"] + "x " for added in given["tokenizer"].get("added_tokens", ())[:50])
    texts = [*TEXTS, controls]
    expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    is_named = given["tokenizer"]["model"]["type"] == "BPE" and not given["tokenizer"]["model"].get("byte_fallback")
    fewest, example = len(texts) + 1, ""
    for name in NAMES if is_named else ("default",):
        found = _tokenize(given, backend.get_vocab_size(), name, texts)
        wrong = [text for text, one, other in zip(texts, expected, found, strict=True) if one != other]
        if not wrong:
            return name, ""
        if len(wrong) < fewest:
            fewest, example = len(wrong), wrong[0]
    return None, example


def _tokenize(given: JsonMapping, size: int, name: str, texts: list[str]) -> list[list[int] | None]:
    """What llama.cpp makes of the texts; None of each where it does not know the name."""
    import xllamacpp

    key = "x"
    with tempfile.TemporaryDirectory() as work:
        p = xllamacpp.CommonParams()
        p.model.path = str(Path(work) / "vocabulary.gguf")
        _write_smallest_model(Path(p.model.path), given, size, name)
        p.n_ctx, p.n_parallel, p.verbosity, p.warmup, p.fit_params, p.cache_ram_mib = 64, 1, -1, False, False, 0
        p.api_keys, p.ui, p.endpoint_slots, p.n_threads_http = [key], False, False, 1
        try:
            server = xllamacpp.Server(p)
        except RuntimeError:
            return [None] * len(texts)
        return [_ask(f"{server.listening_address}/tokenize", key, text) for text in texts]


def _ask(address: str, key: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
        return tokens


def _write_smallest_model(file: Path, given: JsonMapping, size: int, name: str) -> None:
    import numpy as np
    from gguf import GGUFWriter

    width = 32
    writer = GGUFWriter(str(file), "llama")
    for key, value in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": width,
        "feed_forward_length": width,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    write_vocabulary(writer, size, given["tokenizer"], given["stop_ids"], name)
    write_text_settings(writer, given["tokenizer"], given["special_ids"])
    writer.add_tensor("token_embd.weight", np.zeros((size, width), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(width, np.float32))
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", np.zeros(width, np.float32))
    for matrix in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{matrix}.weight", np.zeros((width, width), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    print(json.dumps(try_names(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
