"""What a base's name means, where its files come from, and the folder they are in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import HandlerNotInstalled, OptionError, ProviderError, SqlftError, did_you_mean
from sqlft.handler import ReportStage
from sqlft_local.base.download import (
    GO_ON,
    REPORT_SECONDS,
    DownloadRefused,
    RemoteFile,
    Source,
    fetch_files,
    wait_for_lock,
)
from sqlft_local.base.presets import ENCODERS, PRESETS, WHEELS, Wheel
from sqlft_local.errors import INSTALL
from sqlft_local.gguf.base_file import is_gguf, name_folder

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_installed(*packages: str) -> None:
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


def print_progress(what: str, share: float | None) -> None:
    """Tell of a download that a statement waits for, on standard error."""
    if share is None or share == 1.0:
        print(f"sqlft: {what}", file=sys.stderr, flush=True)


def check_name(base: str) -> None:
    """OptionError if `base` is no preset, hub id or folder with a model; looks at no network."""
    if not base:
        raise OptionError(
            "The local engine needs a base.",
            f"Add base = {NAMES_OF_BASES.format(_list_near_presets(base))}",
        )
    if is_preset(base) or is_gguf(base):
        return
    if _is_folder(base):
        check_folder(Path(base).expanduser())
    elif not HUB_ID.fullmatch(base):
        raise OptionError(
            f"There is no base '{base}'.{did_you_mean(base, [*PRESETS, *ENCODERS])}",
            f"Use {NAMES_OF_BASES.format(_list_near_presets(base))}",
        )


def find_local_folder(base: str) -> Path | None:
    """The folder of `base` if it is on this machine already."""
    check_name(base)
    if not is_preset(base) and not is_gguf(base) and _is_folder(base):
        return Path(base).expanduser().resolve()
    kept = _converted_folder(base)
    if (kept / "config.json").exists():
        return kept
    wheel = WHEELS.get(base.lower())
    if wheel and wheel.is_folder and (weights := find_in_package(wheel)):
        return weights.parent
    return None if is_gguf(base) else find_in_hub_cache(get_hub_id(base))


def pull(base: str, report: ReportStage) -> Path:
    """Get `base` and return its folder, in Hugging Face layout; ProviderError if it cannot be had."""
    if found := find_local_folder(base):
        check_folder(found)
        return found
    if is_gguf(base):
        return _keep_folder(base, Path(base).expanduser(), report)
    wheel = WHEELS.get(base.lower())
    if wheel and (file := find_in_package(wheel)):
        return _keep_folder(base, file, report)
    why = find_hub_refusal(get_hub_id(base), report)
    if why is None:
        folder = download_from_hub(get_hub_id(base), report)
        check_folder(folder)
        return folder
    if wheel is None:
        raise ProviderError(
            f"The base '{base}' is not on this machine, and {_describe_hub()} did not give it: {why}.",
            _describe_other_ways(base),
        )
    if not wheel.is_folder:
        _require_gguf(wheel.package)
    report(f"the hub did not answer ({why}); taking the package {wheel.package}", None)
    with (
        wait_for_lock(bases_folder() / f".{wheel.package}.lock", report),
        tempfile.TemporaryDirectory(prefix="sqlft-wheel-") as work,
    ):
        if found := find_local_folder(base):  # what another process got meanwhile
            return found
        return _keep_folder(base, fetch_from_wheel(wheel, Path(work), report), report)


def _describe_hub() -> str:
    endpoint = os.environ.get("HF_ENDPOINT")
    return f"the hub at HF_ENDPOINT = {endpoint}" if endpoint else "the Hugging Face hub"


def _describe_other_ways(base: str) -> str:
    hub_id, preset = get_hub_id(base), PRESETS.get(base.lower())
    if preset and preset.family.is_gated:
        gate = f"{hub_id} is gated: its licence"
    else:
        gate = "If it is gated, its licence"
    return (
        f"{gate} is accepted at https://huggingface.co/{hub_id}; then run hf auth login, or set HF_TOKEN. Without a "
        f"network here: hf download {hub_id} --local-dir DIR where there is one, and say base = 'DIR'."
    )


def check_folder(folder: Path) -> None:
    """OptionError or ProviderError if `folder` holds no model that can be loaded without running code in it."""
    if folder.is_file():
        raise OptionError(
            f"{folder} is no GGUF file.", "Name a GGUF file, or a folder in Hugging Face layout, with a config.json."
        )
    if not (folder / "config.json").exists():
        hint = "It holds a GGUF file. " if any(folder.glob("*.gguf")) else ""
        raise OptionError(
            f"The folder {folder} holds no model: config.json is missing.",
            f"{hint}Use a folder in Hugging Face layout (config.json, tokenizer.json, *.safetensors).",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = next((f.name for p in PICKLE_PATTERNS for f in sorted(folder.glob(p))), None)
        reason = f"only {pickled}, and unpickling can run any code" if pickled else "no weights"
        raise OptionError(
            f"The folder {folder} has {reason}.", "Save the model as safetensors: model.save_pretrained(folder)."
        )
    for file in sorted(folder.glob("*.safetensors")):
        if not is_complete_safetensors(file):
            raise ProviderError(f"{file} is cut short or damaged.", f"Remove {file.parent} and get the base again.")
    if missing := list_missing_shards(folder):
        raise ProviderError(f"{folder} lacks {', '.join(missing[:3])} ({len(missing)} files).", "Get the base again.")


def is_complete_safetensors(file: Path) -> bool:
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


def _keep_folder(base: str, file: Path, report: ReportStage) -> Path:
    """A GGUF converted, or the folder around weights copied; published by rename so that nobody sees half of it."""
    from filelock import FileLock

    is_folder = file.suffix == ".safetensors"
    if not is_folder:
        _require_gguf(file.name)
    from sqlft_local.gguf.base_file import convert

    target = _converted_folder(base)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                if is_folder:
                    shutil.copytree(file.parent, unfinished)
                else:
                    unfinished.mkdir()
                    convert(file, unfinished, report)
                unfinished.rename(target)
    except OSError as e:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ProviderError(f"The base cannot be written to {target}: {e}.", _DISK_HINT) from e
    return target


def _require_gguf(what: str) -> None:
    """HandlerNotInstalled unless weights in GGUF can be read: before they are fetched."""
    try:
        import gguf  # noqa: F401
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as e:
        raise HandlerNotInstalled(f"Reading {what} needs a package that is not installed ({e}).", INSTALL) from e


_DISK_HINT = "Make room (600 MB), or set SQLFT_BASES to a folder with room."


def _converted_folder(base: str) -> Path:
    name = name_folder(Path(base).expanduser()) if is_gguf(base) else base.lower().replace("/", "--")
    return bases_folder() / name


def get_hub_id(base: str) -> str:
    """The id of a preset on the hub; any other base is one itself.

    >>> get_hub_id("SmolLM2-135M"), get_hub_id("owner/name")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'owner/name')
    """
    preset = PRESETS.get(base.lower()) or ENCODERS.get(base.lower())
    return preset.hub_id if preset else base


def is_preset(base: str) -> bool:
    """Whether it is a name of ours for a base of the hub."""
    return base.lower() in PRESETS or base.lower() in ENCODERS


def _is_folder(base: str) -> bool:
    shaped = base.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", base)
    return bool(shaped) or Path(base).is_dir()


def describe_presets() -> dict[str, str]:
    """The presets by name: how large they are, and whether they are on this machine."""
    return {
        name: f"{preset.size.parameters / 1e9:.2g} B parameters, "
        f"{'here' if find_local_folder(name) is not None else 'not here'}"
        for name, preset in PRESETS.items()
    } | {name: f"makes vectors, {'here' if find_local_folder(name) is not None else 'not here'}" for name in ENCODERS}


NAMES_OF_BASES = "a preset such as {} (sqlft doctor lists all), a Hugging Face id (owner/name), or a folder."


def _list_near_presets(base: str) -> str:
    """The presets that a misspelt name may mean; without any, small ones of today."""
    near = get_close_matches(base.lower(), PRESETS, n=5, cutoff=0.5)
    return ", ".join(near or ("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b"))


SNAPSHOT_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
PROBE_SECONDS = 5.0
"""A name server that never answers would hold the hub's own time-out up for minutes."""


def find_in_hub_cache(hub_id: str) -> Path | None:
    """The snapshot that the hub's client keeps, if it is whole."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    whole = any(folder.glob("*.safetensors")) and any(folder.glob("tokenizer*")) and not list_missing_shards(folder)
    return folder if whole else None


def list_missing_shards(folder: Path) -> list[str]:
    """The weight files that the folder's index names and that are not there."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return []
    named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    return sorted(n for n in named if not (folder / n).exists())


def find_in_package(wheel: Wheel) -> Path | None:
    """The weights inside an installed package, which is not imported: it would want its own dependencies."""
    try:
        spec = find_spec(wheel.module)
    except (ImportError, ValueError):
        return None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(root).parent / wheel.member
        if file.exists():
            return file
    return None


def find_hub_refusal(hub_id: str, report: ReportStage) -> str | None:
    """Why the hub will not give `hub_id`, or None if it will; known within some seconds."""
    try:
        from huggingface_hub import HfApi
    except ImportError as e:
        return f"huggingface_hub is not installed ({e})"
    answer: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().auth_check(hub_id) if not _is_offline() else answer.append("HF_HUB_OFFLINE is set")
            answer.append(None)
        except Exception as e:
            answer.append((str(e).strip().splitlines() or [type(e).__name__])[0][:200])

    report("asking the Hugging Face hub", None)
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    until = time.monotonic() + PROBE_SECONDS
    while probe.is_alive() and time.monotonic() < until:
        probe.join(REPORT_SECONDS)
        report("asking the Hugging Face hub", 0.0)
    return answer[0] if answer else "no answer"


def download_from_hub(hub_id: str, report: ReportStage) -> Path:
    """Fetch a snapshot without pickles into the cache of the hub's client, which puts the files in their places."""
    from huggingface_hub import HfApi, constants, get_session, snapshot_download
    from huggingface_hub.utils._headers import build_hf_headers

    report(f"downloading {hub_id}", None)
    try:
        found = HfApi().model_info(hub_id, files_metadata=True)
        source = Source(get_session(), build_hf_headers(), constants.HF_HUB_DOWNLOAD_TIMEOUT)
        fetch_files(source, _list_files(found), f"downloading {hub_id}", report)
        with _without_bars():
            return Path(snapshot_download(hub_id, allow_patterns=list(SNAPSHOT_PATTERNS)))
    except DownloadRefused as e:
        raise DownloadRefused(e.message, _describe_other_ways(hub_id)) from e
    except SqlftError:
        raise
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ProviderError(f"The download of {hub_id} stopped: {reason}.", GO_ON) from e


@contextmanager
def _without_bars() -> Iterator[None]:
    """The client's bars are off: ours was shown."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    are_shown = not are_progress_bars_disabled()
    if are_shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if are_shown:
            enable_progress_bars()


def _list_files(model: ModelInfo) -> dict[Path, RemoteFile]:
    """What is to be fetched, by its place in the cache; larger files than plain HTTP gives are left to the client."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    cache, name = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=model.id, repo_type="model")
    files = {}
    for file in model.siblings or ():
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        wanted = any(fnmatch(file.rfilename, pattern) for pattern in SNAPSHOT_PATTERNS)
        if wanted and digest and (file.size or 0) <= constants.MAX_HTTP_DOWNLOAD_SIZE:
            url = hf_hub_url(model.id, file.rfilename, revision=model.sha)
            lock = cache / ".locks" / name / f"{digest}.lock"
            files[cache / name / "blobs" / digest] = RemoteFile(url, digest, lock, file.size)
    return files


def fetch_from_wheel(wheel: Wheel, work: Path, report: ReportStage) -> Path:
    """Fetch the wheel from the user's index, check it, and take the weights out."""
    file = _download_wheel(wheel, work, report)
    report("unpacking", None)
    with zipfile.ZipFile(file) as archive:
        around = f"{Path(wheel.member).parent.as_posix()}/"
        wanted = [name for name in archive.namelist() if name.startswith(around)] if wheel.is_folder else [wheel.member]
        archive.extractall(work, wanted)
    file.unlink()
    return work / wheel.member


def _download_wheel(wheel: Wheel, work: Path, report: ReportStage) -> Path:
    """The wheel, from where pip finds it in the user's index; by pip itself where it needs what only pip knows."""
    import httpx2

    spec = f"{wheel.package}=={wheel.version}"
    report(f"asking the package index for {spec}", None)
    _, listed, _ = _run_pip(["index", "versions", "-vv", wheel.package], report)
    found = re.search(rf"Found link (https?://[^\s#]+-{re.escape(wheel.version)}-[^\s#]+\.whl)", listed)
    if found:
        file = bases_folder() / f".{wheel.package}-{wheel.version}.whl"
        remote = RemoteFile(found[1], wheel.sha256, file.with_suffix(".whl.lock"))
        try:
            with httpx2.Client() as client:
                fetch_files(Source(client), {file: remote}, f"downloading {spec}", report)
            return file
        except DownloadRefused:  # an index with a password, which pip does not tell
            pass
    report(f"downloading {spec}", None)
    flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "-q", "-d", str(work / "got")]
    code, _, errors = _run_pip(["download", *flags, spec], report)
    if code:
        reason = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise ProviderError(f"pip could not download {spec}: {reason}", _MANUAL_HINT.format(spec=spec))
    file = next((work / "got").glob("*.whl"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ProviderError(
            f"{file.name} has the SHA-256 {digest}, but {wheel.sha256} was expected.",
            "The package index gave another file than the one pinned here: look at pip's index settings.",
        )
    return file


def _run_pip(arguments: list[str], report: ReportStage) -> tuple[int, str, str]:
    """The exit code, and what pip prints."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = subprocess.Popen(
        [*_pip_command(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        while True:
            try:
                out, errors = pip.communicate(timeout=REPORT_SECONDS)
                return pip.returncode, out, errors
            except subprocess.TimeoutExpired:
                report("waiting for pip", 0.0)
    finally:
        if pip.poll() is None:
            pip.kill()


_MANUAL_HINT = (
    "Connect to a network, or run where there is one: pip download --no-deps {spec}; "
    "then here: pip install --no-deps the downloaded file, and try again."
)


def _pip_command() -> list[str]:
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    raise HandlerNotInstalled(
        "The base is to be downloaded with pip, and there is no pip.", f"Run: {sys.executable} -m ensurepip"
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
