"""The grammar of our statements, one file per family.

Called by `sql.parser` with a cursor behind the first words.  Out: a statement of `sql.statements`.
"""
