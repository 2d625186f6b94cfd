"""Adapters that were trained elsewhere, loaded into a running vLLM server."""

from __future__ import annotations

from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import Artifact
from sqlft_openai.http.errors import Fault
from sqlft_openai.http.transport import Api


def load(api: Api, artifact: Artifact) -> str:
    """Load the adapter of an artifact's folder, if it is not loaded yet; the name under which it answers."""
    folder = artifact.path
    if folder is None or not (folder / "adapter_config.json").exists():
        raise NotSupported(
            f"What was trained is no LoRA adapter: there is no adapter_config.json in {folder}.",
            "Ask it where it was trained: leave serve out.",
        )
    name = str(artifact.details.get("serve_as") or folder.name)
    body = {"lora_name": name, "lora_path": str(folder.absolute())}
    try:
        api.patiently(lambda: api.text("POST", "/load_lora_adapter", body))
    except Fault as fault:
        if "already been loaded" not in fault.message and "already loaded" not in fault.message:
            raise _refused(api, folder.absolute().as_posix(), fault) from None
    return name


def _refused(api: Api, folder: str, fault: Fault) -> ProviderError:
    if fault.status in (404, 405) and "adapter" not in fault.message.lower():
        return ProviderError(
            f"{api.address.base} does not load adapters: {fault.message}",
            "Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
        )
    return ProviderError(
        f"{api.address.base} did not load the adapter {folder}: {fault.message}",
        "The server must see this folder under the same path, and serve the base that it was trained on.",
    )
