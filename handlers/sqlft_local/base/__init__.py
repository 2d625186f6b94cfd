"""The weights that a version starts from: found, read, converted, kept.

Called by asking and by training.  In: a base by name or folder, an adapter, options.  Out: loaded weights with their
tokenizer and chat template, or files for llama.cpp.  Not here: which way of asking is taken (`predict.choose`).
"""
