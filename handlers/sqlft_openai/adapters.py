"""Adapters that were trained elsewhere, loaded into a running vLLM server."""

from __future__ import annotations

from sqlft.errors import NotSupported, ProviderError
from sqlft.handler import Artifact
from sqlft_openai.http.errors import RequestError
from sqlft_openai.http.transport import ApiClient


def load_adapter(api: ApiClient, artifact: Artifact) -> str:
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
        api.retry(lambda: api.request_text("POST", "/load_lora_adapter", body))
    except RequestError as error:
        if "already been loaded" not in error.message and "already loaded" not in error.message:
            raise _make_refusal_error(api, folder.absolute().as_posix(), error) from None
    return name


def _make_refusal_error(api: ApiClient, folder: str, error: RequestError) -> ProviderError:
    if error.status in (404, 405) and "adapter" not in error.message.lower():
        return ProviderError(
            f"{api.address.base} does not load adapters: {error.message}",
            "Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
        )
    return ProviderError(
        f"{api.address.base} did not load the adapter {folder}: {error.message}",
        "The server must see this folder under the same path, and serve the base that it was trained on.",
    )
