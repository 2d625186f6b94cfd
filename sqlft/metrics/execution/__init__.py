"""Where SQL of strangers is run: a process of its own that knows only the standard library and DuckDB.

`sqlft.metrics.sql` calls `pool` with gold queries and their predictions; out come scores.  `pool` runs in the parent,
the rest in the child, which imports nothing of sqlft but this folder and `sqlft.sql.names`.
"""
