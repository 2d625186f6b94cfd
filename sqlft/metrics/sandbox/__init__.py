"""Where texts that nobody has read are run as SQL: a process of its own that knows only the standard library.

`pool` is the parent's side; everything else runs in the child and imports nothing of sqlft outside this folder.
"""
