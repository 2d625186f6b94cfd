"""Training at a provider: rows to its file, a job followed to its end, the tuned model.

Called by `handler`, whose classes inherit `finetune.handler.HostedTrainer`.  In: a model, rows, options.  Out: an
artifact that names the tuned model.  `rows` checks and writes, `jobs` follows, `dialects` has what differs.
"""
