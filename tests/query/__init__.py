"""Proof that a query over models gives what the same query gives over tables that hold every answer.

Only sqlft's public surface is used here.  `python -m tests.query.differential` and `python -m tests.query.hostile` run
any number of cases; the tests run a few hundred of the one and a few thousand of the other.
"""
