"""A base, with or without an adapter, as files for other programs.

Called by the handler for EXPORT MODEL.  In: the base's folder, an adapter, how prompts are rendered.  Out: files that
PEFT, transformers, llama.cpp or Ollama opens, and for VERIFY a predictor that opens them by their means.  Not here:
GGUF itself (`gguf.write`), the card and what else the core writes beside the files.
"""
