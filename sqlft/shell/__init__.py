"""The terminal: what is typed to statements and dot-commands, results to text.

Called by the command `sqlft`; `start.run_shell` is the way in.  Statements go to a Connection, as from Python.
"""
