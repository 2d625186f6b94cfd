"""A GGUF file of others as a base: what it says of itself, its tokenizer, and a folder that can be trained on.

llama.cpp asks such a file as it is, whatever its architecture: it tokenizes too, by the file's own vocabulary, and the
file's chat template is rendered here.  For training, and for asking by transformers, the file becomes a folder in
Hugging Face layout, by transformers where it reads the architecture.  Reading a vocabulary takes seconds, so what
asking needs of it is kept beside the bases.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqlft.errors import NotSupported, ProviderError
from sqlft_local.base.tokenization import SETTINGS_FILE, ChatTokenizer
from sqlft_local.errors import silence_transformers

if TYPE_CHECKING:
    from tokenizers import AddedToken

    from sqlft_local._types import JsonMapping, JsonObject

ENCODERS = ("bert", "t5encoder", "gemma-embedding", "eurobert")
"""What the names of architectures that make vectors and no texts have in them."""
OTHER_TYPES = {"adapter": "a LoRA adapter", "mmproj": "a projector of images", "imatrix": "measurements for quantising"}
"""What a file with this `general.type` holds in place of a model."""
MAGIC, CONTROL = b"GGUF", 3
"""What a file begins with, and the type of a token that is no text."""
FORMAT_VERSION = 2
"""Of what is kept of a file."""
FLOAT32_BYTES = 2 << 30
"""Files up to so many bytes become folders in float32, larger ones in bfloat16."""
SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class _NamedToken(NamedTuple):
    """A token that a chat template may write by its name, and where its number stands."""

    name: str
    field: str


TOKEN_FIELDS = tuple(
    _NamedToken(f"{name}_token", f"tokenizer.ggml.{key}_token_id")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
)
END_FIELDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def is_gguf(base: str) -> bool:
    """Whether a base's name is the path of a GGUF file that is there; Ollama's have no suffix."""
    file = Path(base).expanduser()
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return file.suffix.lower() == ".gguf" or opened.read(len(MAGIC)) == MAGIC


def describe(file: Path, folder: Path) -> JsonMapping:
    """What a version's details say of a file that answers; NotSupported for one that does not."""
    settings = read_settings(file, folder)
    if settings["makes_vectors"]:
        raise NotSupported(
            f"{file} is an embedding model ({settings['architecture']}), and answers with no text.",
            "Add USING mode = 'embedding': then the model gives vectors.",
        )
    names = ("architecture", "name", "context_length", "file_type")
    return {"gguf": {name: settings[name] for name in names if settings[name] is not None}}


def read_settings(file: Path, folder: Path) -> JsonObject:
    """What asking needs of a file, kept in `folder`; NotSupported, ProviderError."""
    kept = folder / SETTINGS_FILE
    if kept.exists():
        found: JsonObject = json.loads(kept.read_text(encoding="utf-8"))
        return found
    made = _build_settings(read_fields(file))
    with suppress(OSError):  # else it is read again the next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(made), encoding="utf-8")
        unfinished.replace(kept)
    return made


def read_fields(file: Path) -> JsonObject:
    """The metadata of a whole file with a model; ProviderError, NotSupported."""
    _check_parts(file)
    try:
        from gguf import GGUFReader

        fields: JsonObject = {name: field.contents() for name, field in GGUFReader(str(file)).fields.items()}
        kind = fields.get("general.type", "model")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as e:
        raise ProviderError(
            f"{file} is no complete GGUF file ({type(e).__name__}: {e}).", "It was cut short or damaged: get it again."
        ) from e
    if kind in OTHER_TYPES:
        raise NotSupported(
            f"{file} holds {OTHER_TYPES[kind]}, and no model.",
            "FROM ADAPTER reads an adapter as PEFT saves it, in a folder with adapter_config.json."
            if kind == "adapter"
            else "Name the file with the model's own weights.",
        )
    if "general.architecture" not in fields or "tokenizer.ggml.tokens" not in fields:
        raise NotSupported(f"{file} has no architecture or no vocabulary.", "Get a GGUF file of a language model.")
    return fields


def _check_parts(file: Path) -> None:
    """ProviderError unless a file that is one of several is the first, and the others are beside it."""
    match = SPLIT_NAME.fullmatch(file.name)
    if match is None:
        return
    names = [f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]
    if file.name != names[0]:
        raise ProviderError(f"{file} is a part of a model, and not its first one.", f"Name the first: {names[0]}.")
    if missing := [name for name in names if not (file.parent / name).is_file()]:
        raise ProviderError(f"{file} is the first of {len(names)} parts, and {missing[0]} is missing.", "Get it too.")


def _build_settings(fields: JsonMapping) -> JsonObject:
    """As `ChatTokenizer` takes them, and what else is to be known of the file."""
    architecture = str(fields["general.architecture"])
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type") or ()
    special = {one.name: tokens[i] for one in TOKEN_FIELDS if (i := fields.get(one.field)) is not None}
    return {
        "chat_template": fields.get("tokenizer.chat_template"),
        "special_tokens": special,
        "control_tokens": {str(i): tokens[i] for i, kind in enumerate(kinds) if kind == CONTROL},
        "eos_token_id": fields.get(END_FIELDS[0]),
        "stop_ids": sorted({i for name in END_FIELDS if (i := fields.get(name)) is not None}),
        "adds_bos": bool(fields.get("tokenizer.ggml.add_bos_token", architecture == "llama")),
        "longest_token": max(map(len, tokens), default=1),
        "architecture": architecture,
        "name": fields.get("general.name"),
        "file_type": fields.get("general.file_type"),
        "context_length": fields.get(f"{architecture}.context_length"),
        "makes_vectors": f"{architecture}.pooling_type" in fields or any(word in architecture for word in ENCODERS),
    }


class GgufTokenizer(ChatTokenizer):
    """llama.cpp's tokenizer of a file that it has loaded, and the chat template of the file."""

    def __init__(self, settings: JsonObject, call: Callable[[str, JsonMapping], JsonMapping]) -> None:
        """`call` posts to a path of llama.cpp's server."""
        self._settings, self._call = settings, call
        self.chat_template = settings["chat_template"]
        self.all_special_ids = [int(i) for i in settings["control_tokens"]]
        self.eos_token_id = settings["eos_token_id"]
        self.opening = settings["special_tokens"].get("bos_token", "") if settings["adds_bos"] else ""

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The file's control tokens."""
        from tokenizers import AddedToken

        return {int(i): AddedToken(text, special=True) for i, text in self._settings["control_tokens"].items()}

    def get_vocab(self) -> dict[str, int]:
        """A text as long as the longest token: all that a Renderer asks of a vocabulary."""
        return {" " * int(self._settings["longest_token"]): 0}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of the text, control tokens as the file's vocabulary spells them."""
        asked = {"content": text, "add_special": add_special_tokens, "parse_special": True}
        ids: list[int] = self._call("/tokenize", asked)["tokens"]
        return ids

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The ids' text."""
        control = set(self.all_special_ids) if skip_special_tokens else set()
        text: str = self._call("/detokenize", {"tokens": [i for i in ids if i not in control]})["content"]
        return text


def name_folder(file: Path) -> str:
    """The name of the folder of what is made of a file: another one whenever the file is another."""
    about = file.stat()
    stamp = hashlib.sha256(f"{FORMAT_VERSION} {file} {about.st_size} {about.st_mtime_ns}".encode("utf-8", "replace"))
    return f"{file.stem[:60]}-{stamp.hexdigest()[:12]}"


def convert(file: Path, folder: Path, progress: Callable[[str, float | None], None]) -> None:
    """Write config, tokenizer and weights into the empty `folder`; NotSupported for what nothing here reads."""
    from sqlft_local.gguf import read

    try:
        read.convert(file, folder, progress)
    except NotSupported:
        fields = read_fields(file)
        progress("converting", None)
        _convert_with_transformers(file, folder, fields)


def _convert_with_transformers(file: Path, folder: Path, fields: JsonMapping) -> None:
    import torch
    import transformers

    dtype = torch.float32 if file.stat().st_size <= FLOAT32_BYTES else torch.bfloat16
    given = {"gguf_file": file.name, "local_files_only": True}
    plain = getattr(transformers, "GgufConfig", None)  # newer ones keep the file's blocks unless they are asked
    numbers = {"dtype": dtype, **({"quantization_config": plain(dequantize=True)} if plain else {})}
    kind = transformers.AutoModelForCausalLM
    try:
        with silence_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
            loaded = kind.from_pretrained(file.parent, **given, **numbers)
            with torch.device("meta"):  # a model that knows of no GGUF, which is what can be saved
                model = kind.from_config(transformers.AutoConfig.from_pretrained(file.parent, **given), dtype=dtype)
            model.load_state_dict(loaded.state_dict(), assign=True)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, OSError, ImportError) as e:
        raise NotSupported(
            f"{file.name} can be asked as it is (backend = 'llama.cpp'), and not trained: transformers does not read "
            f"its architecture or vocabulary, {fields['general.architecture']} with {fields['tokenizer.ggml.model']} "
            f"({(str(e).strip().splitlines() or [type(e).__name__])[0][:200]}).",
            "Train on the folder or hub id that the file was made of.",
        ) from e
    if template := fields.get("tokenizer.chat_template"):
        tokenizer.chat_template = template
    ends = sorted({i for name in END_FIELDS if (i := fields.get(name)) is not None})
    model.generation_config.eos_token_id = ends or None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
