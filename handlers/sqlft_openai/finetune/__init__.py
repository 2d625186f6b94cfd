"""Training at a provider: rows to its file, a job followed to its end, the tuned model.

Called by the handler.  `dialects` has what differs between providers.
"""
