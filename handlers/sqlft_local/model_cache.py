"""What stays in memory between statements: the least recently used leaves first when memory runs short."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from sqlft_local.machine import read_cgroup_limits

MEMORY_SHARE = 0.5
"""Of the machine's memory, for models that are kept loaded."""


@dataclass
class CachedModel:
    """Something loaded; `bytes` of memory, `free` gives them back."""

    value: Any
    bytes: int
    free: Callable[[], None]
    users: int = 0
    unload_when_idle: bool = field(default=False)
    """Freed as soon as nobody uses it."""


class ModelCache:
    """Loaded models by key.  One that is in use is never freed; `limit` in bytes may be passed by those in use."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[Hashable, CachedModel] = OrderedDict()
        self._lock = threading.RLock()

    def acquire(self, key: Hashable, load: Callable[[], CachedModel]) -> Any:
        """The value of `key`, loaded if need be, in use until `release` is called."""
        with self._lock:
            resident = self._entries.get(key)
            if resident is None:
                resident = self._entries[key] = load()
            self._entries.move_to_end(key)
            resident.users += 1
            resident.unload_when_idle = False
            self._shrink()
            return resident.value

    def release(self, key: Hashable) -> None:
        """No longer in use by one that took it."""
        with self._lock:
            resident = self._entries.get(key)
            if resident is None:
                return
            resident.users = max(0, resident.users - 1)
            if resident.unload_when_idle and not resident.users:
                self._free(key)
            self._shrink()

    def unload(self, which: Callable[[Hashable], bool]) -> bool:
        """Free those of such keys, at once or when their last user is done; whether one was not on its way out."""
        with self._lock:
            found = [k for k, r in self._entries.items() if which(k) and not r.unload_when_idle]
            for key in found:
                self._entries[key].unload_when_idle = True
                if not self._entries[key].users:
                    self._free(key)
            return bool(found)

    def keep_newest(self, which: Callable[[Hashable], bool], most: int) -> None:
        """Free those of such keys that nobody uses, least recently used first, but for `most` of them."""
        with self._lock:
            idle = [key for key, resident in self._entries.items() if which(key) and not resident.users]
            for key in idle[: max(0, len(idle) - most)]:
                self._free(key)

    @property
    def bytes(self) -> int:
        """Memory of all that is kept."""
        return sum(r.bytes for r in self._entries.values())

    def _shrink(self) -> None:
        idle = [k for k, r in self._entries.items() if not r.users]
        newest = next(reversed(self._entries), None)
        for key in idle:
            if self.bytes <= self.limit:
                return
            if key != newest:
                self._free(key)

    def _free(self, key: Hashable) -> None:
        self._entries.pop(key).free()


def detect_memory() -> int:
    """Bytes of this machine's memory, as far as this process may use it; 8 GB where that cannot be found out."""
    import os

    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
    return min([total, *(limit for limit, _ in read_cgroup_limits())])


MODEL_CACHE = ModelCache(int(detect_memory() * MEMORY_SHARE))
"""Those of this process."""
