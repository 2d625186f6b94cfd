"""The local engine; importing it loads neither torch nor transformers."""

from sqlft_local.base.hub import pull
from sqlft_local.handler import Local

__all__ = ["Local", "pull"]
