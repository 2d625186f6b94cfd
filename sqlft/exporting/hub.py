"""PUSH_TO: an export to a repository of the Hugging Face hub, by its own client."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sqlft.errors import HandlerNotInstalled, MissingSecret, OptionError, ProviderError, redact_keys

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def prepare_push(repository: str, private: bool) -> Callable[[Path, str], None]:
    """What uploads a folder with a message; OptionError, MissingSecret before anything is written."""
    if not REPOSITORY.fullmatch(repository):
        raise OptionError(f"PUSH_TO names no repository: '{repository}'.", "Write: PUSH_TO 'owner/name'.")
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as e:
        raise HandlerNotInstalled(f"PUSH_TO needs a package that is not installed ({e}).", _INSTALL) from e
    if not (token := get_token()):
        raise MissingSecret(
            "PUSH_TO needs a token of the Hugging Face hub, and there is none.",
            "Set HF_TOKEN in the environment to one that may write, or run: hf auth login.",
        )

    def push(folder: Path, message: str) -> None:
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except (HfHubHTTPError, OSError, ValueError) as e:
            reason = redact_keys((str(e).strip().splitlines() or [type(e).__name__])[0])
            raise ProviderError(
                f"The export is in {folder}, but was not uploaded to {repository}: {reason}.",
                f"Look at the token and the name, then run: hf upload {repository} '{folder}'",
            ) from e

    return push


_INSTALL = "Run: pip install huggingface_hub"
