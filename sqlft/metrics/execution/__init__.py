"""Where texts that nobody has read are run as SQL: a process of its own that knows only the standard library.

`pool` and `settled` are the parent's side; the rest runs in the child and imports nothing of sqlft outside this folder.
"""
