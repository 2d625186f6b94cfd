"""Where texts that nobody has read are run as SQL: a process of its own that knows only the standard library.

`pool` and `snapshot` run in the parent, the rest in the child; it imports nothing of sqlft outside this folder.
"""
