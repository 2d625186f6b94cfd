"""What stays in memory between statements: the least recently used leaves first when memory runs short."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from sqlft_local.machine import limits

SHARE = 0.5
"""Of the machine's memory, for models that are kept loaded."""


@dataclass
class Resident:
    """Something loaded; `bytes` of memory, `free` gives them back."""

    value: Any
    bytes: int
    free: Callable[[], None]
    users: int = 0
    leaving: bool = field(default=False)
    """Freed as soon as nobody uses it."""


class Residents:
    """Loaded models by key.  One that is in use is never freed; `limit` in bytes may be passed by those in use."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, Resident] = OrderedDict()
        self._lock = threading.RLock()

    def take(self, key: Hashable, load: Callable[[], Resident]) -> Any:
        """The value of `key`, loaded if need be, in use until `give` is called."""
        with self._lock:
            resident = self._kept.get(key)
            if resident is None:
                resident = self._kept[key] = load()
            self._kept.move_to_end(key)
            resident.users += 1
            resident.leaving = False
            self._shrink()
            return resident.value

    def give(self, key: Hashable) -> None:
        """No longer in use by one that took it."""
        with self._lock:
            resident = self._kept.get(key)
            if resident is None:
                return
            resident.users = max(0, resident.users - 1)
            if resident.leaving and not resident.users:
                self._free(key)
            self._shrink()

    def unload(self, which: Callable[[Hashable], bool]) -> bool:
        """Free those of such keys, at once or when their last user is done; whether there was one not told before."""
        with self._lock:
            found = [k for k, r in self._kept.items() if which(k) and not r.leaving]
            for key in found:
                self._kept[key].leaving = True
                if not self._kept[key].users:
                    self._free(key)
            return bool(found)

    @property
    def bytes(self) -> int:
        """Memory of all that is kept."""
        return sum(r.bytes for r in self._kept.values())

    def _shrink(self) -> None:
        idle = [k for k, r in self._kept.items() if not r.users]
        newest = next(reversed(self._kept), None)
        for key in idle:
            if self.bytes <= self.limit:
                return
            if key != newest:
                self._free(key)

    def _free(self, key: Hashable) -> None:
        self._kept.pop(key).free()


def memory() -> int:
    """Bytes of this machine's memory, as far as this process may use it; 8 GB where that cannot be found out."""
    import os

    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
    return min([total, *(limit for limit, _ in limits())])


RESIDENTS = Residents(int(memory() * SHARE))
"""Those of this process."""
