"""Rows to a LoRA adapter.

Called by the handler in the worker process.  In: a loaded base, conversations, options, a folder to work in.  Out: an
adapter that PEFT reads, checkpoints on the way.  `step` is what one process does in a step, `loop` the whole.
"""
