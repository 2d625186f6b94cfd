"""What the statements of one connection share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from sqlft.catalog.records import View
from sqlft.catalog.store import Catalog
from sqlft.runtime.limits import Purse

Parameters = Sequence[Any] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Tick:
    """How far a long statement is: for a progress bar."""

    label: str
    done: float
    total: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    left: float | None = None
    """Seconds to go, where whoever works knows them better than done and total do."""


ANSWER_SECONDS = 15.0
"""How long the question that Session.choose asks waits for its answer."""
STOPS = ("s", "y")
"""First letters of answers that stop a training; '' is no answer, which stops it too."""


def _silent(_: Any) -> None:
    return None


@dataclass
class Session:
    """The user's DuckDB connection, the catalog, and where to tell things."""

    con: duckdb.DuckDBPyConnection
    catalog: Catalog
    warn: Callable[[str], None] = _silent
    """Called with one line for the person at the screen: "3 of 20 rows failed …"."""
    progress: Callable[[Tick], None] = _silent
    """Called some times a second while something long runs; may raise KeyboardInterrupt."""
    piece: Callable[[str], None] | None = None
    """Called with each part of an answer as it is written, where a statement asks for one answer only."""
    tell: Callable[[str], None] = _silent
    """Called with one line of what is good to know: what a training will take."""
    choose: Callable[[str, Callable[[], bool]], str] | None = None
    """Asks the person who pressed Ctrl-C while the function given says that there is still something to ask of; the
    first letter of the answer, '' for none.  None where nobody sits at a screen."""
    interrupted: bool = False
    """Set by Connection.interrupt() from another thread; long work looks at it and raises Cancelled."""
    purse: Purse = field(default_factory=Purse)
    """What SET sqlft_… said; cursors share it."""
    loaded: dict[str, Callable[[], bool]] = field(default_factory=dict)
    """By version digest: how to free what its handler keeps in memory; cursors share it."""
    cleanup: list[Callable[[], object]] = field(default_factory=list)
    """Run before the next statement: what the last one registered."""

    @property
    def machine_usd_per_hour(self) -> float | None:
        """What an hour of this machine costs, as SET sqlft_machine_usd_per_hour said."""
        return self.purse.machine_usd_per_hour

    temporary: dict[str, View] = field(default_factory=dict)
    """Views over models that end with the connection, by lower-case name."""

    listings: set[str] = field(default_factory=set)
    """Tables such as MindsDB's `models` that queries name and DuckDB does not know."""

    def names(self) -> frozenset[str]:
        """Models, views and what else of ours is named in queries, in lower case."""
        known = self.catalog.names()
        return known | self.temporary.keys() | self.listings if self.temporary or self.listings else known

    def view(self, name: str) -> View | None:
        """The view over models of that name; a temporary one goes before."""
        return self.temporary.get(name.lower()) or self.catalog.view(name)

    def drop_view(self, name: str) -> None:
        """Forget a view over models."""
        if self.temporary.pop(name.lower(), None) is None:
            self.catalog.drop_view(name)

    def unregister_later(self, name: str) -> None:
        """Let go of a registered relation before the next statement."""
        self.cleanup.append(lambda: self.con.unregister(name))
