"""DuckDB's connection with models: what people and programs call.

Called from Python, by the shell and by whatever serves statements to others.  In: SQL, parameters, callbacks for what
is worth showing meanwhile.  Out: rows, relations, Arrow, data frames.  `opening` makes a connection, `connection` runs
statements, `fetching` reads `results`, `progress` draws bars.  Not here: what a statement does (`statements`, `query`).
"""

from sqlft.connection.connection import Connection
from sqlft.connection.opening import attach, connect

__all__ = ["Connection", "attach", "connect"]
