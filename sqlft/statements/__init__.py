"""One function per statement of ours; `run.RUNNERS` says which.

Called by the connection.  In: a parsed statement, its parameters, the session.  Out: a table for the person who typed
it.  Not here: SELECT (`query`), how a statement is read (`sql`).
"""
