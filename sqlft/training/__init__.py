"""FINETUNE: rows to a new version.

Called by the statements that train.  In: a Plan (model, engine, handler, options, where the rows come from).  Out: the
key of a version that a worker process trains, followed until its end or left alone.  Not here: how weights change
(the handlers), what rows mean (`data`).
"""
