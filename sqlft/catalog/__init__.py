"""What is kept: engines, models, versions and their trainings, prices, usage, evaluations.

Called by nearly everything above.  In and out: the records of `records`.  `store` is the one way in; `tables` shows it
as SQL tables, `files` holds the artifacts and work folders beside it.
"""
