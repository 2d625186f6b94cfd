"""How a provider is reached: addresses, requests, what goes wrong, how many at a time.

Called by `chat`, `embeddings`, `batch` and `finetune`.  In: an engine, its options, a body.  Out: the
provider's reply, or an error that names the next step.  Not here: what a body holds.
"""
