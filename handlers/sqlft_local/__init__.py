"""The local engine; importing it loads neither torch nor transformers."""

from sqlft_local.bases import pull
from sqlft_local.local import Local

__all__ = ["Local", "pull"]
