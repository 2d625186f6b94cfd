"""Text to statements of ours; what is DuckDB's own is recognised and left as it was typed.

Called by the connection.  In: what the user typed.  Out: frozen dataclasses of `statements`, with positions for errors.
Not here: the inside of queries, which DuckDB parses (`query.ast`).
"""
