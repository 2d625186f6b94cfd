"""FINETUNE: rows to a new version.

Called by the statements that train.  In: a TrainingPlan (model, engine, handler, options, source of rows).  Out: the
key of a version that a worker process trains, followed until its end or left alone.  Not here: how weights change
(the handlers), what rows mean (`data`).
"""
