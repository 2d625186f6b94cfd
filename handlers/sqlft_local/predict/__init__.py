"""Prompts to answers on this machine: OpenVINO, torch, transformers' own generate, or llama.cpp.

Called by the handler.  In: a base, an adapter, options, requests.  Out: completions, in any order.  `choose` says which
way is taken and why; `embed` and `score` are the other things that are asked of a model.
"""
