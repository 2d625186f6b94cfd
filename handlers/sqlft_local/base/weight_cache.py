"""The files that asking reads, made once of a base and an adapter and kept beside the bases.

llama.cpp/<base>-<digest>/tokenizer.json asking.json base-q8_0.gguf adapter-<digest>.gguf merged-<digest>-q8_0.gguf
                             base-bfloat16.safetensors, which torch reads
                             openvino-encoder-<version>/encoder.xml, of a model that makes vectors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import HandlerNotInstalled, NotSupported, ProviderError
from sqlft.handler import ReportStage
from sqlft_local import errors, machine
from sqlft_local.base import hub, tokenization
from sqlft_local.base.adapter import digest_adapter
from sqlft_local.base.config import read_config
from sqlft_local.gguf.base_file import name_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT_VERSION = 1
"""Of what is written; files of another one are made again."""
SMALL_BASE_BYTES = 2 << 30
"""Bases up to so many bytes get files of their own, made to be asked faster."""
SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float16": "F16"}
ENCODER_FILE = "encoder.xml"
MAX_MERGED_FILES = 8
"""Merged files kept for a base; the least recently used goes first."""


@dataclass(frozen=True)
class GgufFiles:
    """What llama.cpp needs to answer for one version."""

    home: Path
    """The folder with the tokenizer."""
    model: Path
    adapter: Path | None
    """Laid over the model while it runs; None where it is merged into it, or there is none."""


def prepare_gguf_files(folder: Path, adapter: Path | None, kind: str, merged: bool, report: ReportStage) -> GgufFiles:
    """The files for the base in `folder` and an adapter, made if they are not there; NotSupported, ProviderError."""
    home = find_cache_folder(folder)
    _prepare_tokenizer(folder, home)
    base = home / f"base-{kind}.gguf"
    if adapter is None:
        return GgufFiles(home, _create_once(base, lambda to: _export_gguf(folder, home, None, kind, to, report)), None)
    digest = digest_adapter(adapter)
    if merged:
        target = home / f"merged-{digest}-{kind}.gguf"
        made = _create_once(target, lambda to: _export_gguf(folder, home, adapter, kind, to, report))
        _remove_old_merged(home, made)
        return GgufFiles(home, made, None)

    def convert(to: Path) -> None:
        from sqlft_local.gguf.write import export_adapter

        export_adapter(folder, adapter, to)

    model = _create_once(base, lambda to: _export_gguf(folder, home, None, kind, to, report))
    return GgufFiles(home, model, _create_once(home / f"adapter-{digest}.gguf", convert))


def prepare_openvino_folder(folder: Path, adapter: Path | None, report: ReportStage) -> tuple[Path, Path]:
    """(the folder with the tokenizer, the folder that OpenVINO reads), made of the GGUF file in 8 bits."""
    files = prepare_gguf_files(folder, adapter, "q8_0", merged=True, report=report)
    target = files.home / f"openvino-{files.model.stem}"

    def convert(to: Path) -> None:
        to.mkdir()
        link = to / "model.gguf"
        link.symlink_to(files.model)
        save_openvino_model(link)
        link.unlink()

    _create_once(target, convert)
    _remove_old_merged(files.home, target, "openvino-merged-*")
    return files.home, target


def save_openvino_model(gguf: Path) -> None:
    """Write what OpenVINO makes of a GGUF file beside it, so that it need not be made whenever the model is loaded."""
    import openvino_genai

    try:
        with machine.keep_signal_stack():
            openvino_genai.LLMPipeline(str(gguf), "CPU", enable_save_ov_model=True)
    except (RuntimeError, IndexError) as e:
        raise ProviderError(
            f"OpenVINO cannot read {gguf.resolve()}: {str(e).strip().splitlines()[-1]}.",
            "Use backend = 'transformers' or 'llama.cpp'.",
        ) from e


def prepare_openvino_encoder(folder: Path, agrees: Callable[[Path], bool]) -> Path | None:
    """The file of a model without output head for OpenVINO; None where it cannot be made, or `agrees` refuses it.

    That is found out once for each release of OpenVINO.
    """
    home = find_cache_folder(folder)
    target = home / f"openvino-encoder-{version('openvino')}"

    def convert(to: Path) -> None:
        to.mkdir()
        try:
            _write_openvino_encoder(folder, to / ENCODER_FILE)
            is_right = agrees(to / ENCODER_FILE)
        except (RuntimeError, ValueError, TypeError, AttributeError):  # whatever a model does when it is traced
            is_right = False
        for file in [] if is_right else to.iterdir():
            file.unlink()

    home.mkdir(parents=True, exist_ok=True)
    file = _create_once(target, convert) / ENCODER_FILE
    return file if file.exists() else None


def _write_openvino_encoder(folder: Path, to: Path) -> None:
    import openvino
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
    ).eval()
    model.config.use_cache = False
    example = torch.ones(2, 7, dtype=torch.long)
    with torch.inference_mode(), machine.keep_signal_stack(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace cannot know, which is compared
        found = openvino.convert_model(model, example_input={"input_ids": example, "attention_mask": example})
    openvino.save_model(found, to, compress_to_fp16=False)


def find_cache_folder(folder: Path) -> Path:
    """Where the files of this base are: another place whenever a file of the base is another one."""
    stamp = hashlib.sha256(str(FORMAT_VERSION).encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja", ".model"):
            about = file.stat()
            stamp.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    name = folder.name if len(folder.name) < 60 else "base"
    return hub.bases_folder() / "llama.cpp" / f"{name}-{stamp.hexdigest()[:12]}"


def find_gguf_folder(file: Path) -> Path:
    """Where what asking needs of a GGUF file of others is kept."""
    return hub.bases_folder() / "llama.cpp" / name_folder(file)


def prepare_weights(folder: Path, dtype: str) -> list[Path]:
    """The base's files, or of a small one a file of its weights in 16 bits, made if need be: read as it is used."""
    own = sorted(folder.glob("*.safetensors"))
    if (
        dtype not in SAFETENSORS_DTYPES
        or sum(f.stat().st_size for f in own) > SMALL_BASE_BYTES
        or all(_has_dtype(f, SAFETENSORS_DTYPES[dtype]) for f in own)
    ):
        return own
    try:
        home = find_cache_folder(folder)
        home.mkdir(parents=True, exist_ok=True)
        target = home / f"base-{dtype}.safetensors"
        if target.exists() and not hub.is_complete_safetensors(target):
            target.unlink()
        return [_create_once(target, lambda to: _convert_weights(own, dtype, to))]
    except (ProviderError, OSError):
        return own


def _has_dtype(file: Path, dtype: str) -> bool:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return all(tensors.get_slice(name).get_dtype() == dtype for name in tensors.keys())  # noqa: SIM118


def _convert_weights(files: list[Path], dtype: str, to: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    found = {name: tensor.to(getattr(torch, dtype)) for file in files for name, tensor in load_file(file).items()}
    save_file(found, to, metadata={"format": "pt"})


def load_chat_tokenizer(folder: Path) -> tokenization.ChatTokenizer | None:
    """The base's tokenizer without transformers, whose own takes seconds; None where that is not to be had."""
    try:
        home = find_cache_folder(folder)
        _prepare_tokenizer(folder, home)
        return tokenization.ChatTokenizer(home)
    except (NotSupported, ProviderError, OSError):
        return None


def _create_once(target: Path, make: Callable[[Path], None]) -> Path:
    """The file, made by at most one process at a time and published by rename."""
    from filelock import FileLock

    if not target.exists():
        with _explain_write_errors(target), FileLock(f"{target}.lock"):
            if not target.exists():
                unfinished = target.with_name(f".{target.name}.unfinished")
                try:
                    with _require_packages():
                        make(unfinished)
                    unfinished.replace(target)
                finally:
                    _remove(unfinished)
    _touch(target)
    return target


def export_gguf(
    folder: Path,
    base: Path,
    adapter: Path | None,
    kind: str,
    to: Path,
    report: ReportStage,
    chat_template: str,
) -> None:
    """Write a file that is asked with text, of the weights in `folder`, which are those of `base` or made of them."""
    home = find_cache_folder(base)
    _prepare_tokenizer(base, home)
    with _require_packages():
        _export_gguf(folder, home, adapter, kind, to, report, chat_template)


def _export_gguf(
    folder: Path,
    home: Path,
    adapter: Path | None,
    kind: str,
    to: Path,
    report: ReportStage,
    chat_template: str | None = None,
) -> None:
    from sqlft_local.base.adapter import read_adapter, wrong_base_error
    from sqlft_local.gguf.write import export

    _check_base(folder, home, report)
    tokenizer = json.loads((home / tokenization.TOKENIZER_FILE).read_text(encoding="utf-8"))
    stop_ids = json.loads((home / tokenization.SETTINGS_FILE).read_text(encoding="utf-8"))["stop_ids"]
    scale, changes = read_adapter(adapter) if adapter else (1.0, {})
    try:
        found = export(folder, to, kind, tokenizer, stop_ids, changes, scale, report, chat_template)
    except RuntimeError as e:
        if adapter is None:
            raise
        raise wrong_base_error(adapter) from e
    if adapter and found != set(changes):
        raise wrong_base_error(adapter)


def _check_base(folder: Path, home: Path, report: ReportStage) -> None:
    """NotSupported where llama.cpp would not compute the base as transformers does; tried once for a base."""
    from sqlft_local.gguf.architectures import check_convertible, find_reason_for_trial

    config = read_config(folder)
    check_convertible(config)
    if (reason := find_reason_for_trial(config)) is None:
        return

    def make(to: Path) -> None:
        from sqlft_local.gguf.trial import find_fault

        report(f"comparing llama.cpp with transformers for {reason}", None)
        to.write_text(json.dumps(find_fault(folder)), encoding="utf-8")

    with _require_packages():
        name = f"trial-{version('xllamacpp')}.json"
    tried = _create_once(home / name, make)
    if fault := json.loads(tried.read_text(encoding="utf-8")):
        raise NotSupported(
            f"No file for llama.cpp is made of {reason}: {fault}.", "Use backend = 'transformers', or FORMAT merged."
        )


def _prepare_tokenizer(folder: Path, home: Path) -> None:
    """Write down what transformers' tokenizer does, where that is not done yet."""
    if (home / tokenization.SETTINGS_FILE).exists():
        return
    from sqlft_local.base.tokenization import Renderer, load_transformers_tokenizer

    with _require_packages():
        tokenizer, stop_ids = load_transformers_tokenizer(folder)
    ends = Renderer(tokenizer, stop_ids).stop_ids
    with _explain_write_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        tokenization.save_tokenizer(tokenizer, sorted(ends), home)


@contextmanager
def _require_packages() -> Iterator[None]:
    try:
        yield
    except ImportError as e:
        raise HandlerNotInstalled(
            f"Making the files that asking reads needs a package that is not installed ({e}).", errors.INSTALL
        ) from e


@contextmanager
def _explain_write_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ProviderError(
            f"The file for llama.cpp cannot be written to {target}: {e}.",
            "Make room, set SQLFT_BASES to a folder with room, or use backend = 'transformers'.",
        ) from e


def _touch(file: Path) -> None:
    try:
        os.utime(file)
    except OSError:
        return


def _remove_old_merged(home: Path, but: Path, which: str = "merged-*.gguf") -> None:
    """Versions come and go; their merged files can be made again."""
    merged = sorted(home.glob(which), key=lambda f: f.stat().st_mtime)
    for file in merged[:-MAX_MERGED_FILES]:
        if file != but:
            _remove(file)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
