"""Prompts to answers: every question that a model is asked goes through here.

Called by `query` for models in a SELECT, by `evaluation` and by a judge.  In: a resolved version, its options and
messages.  Out: one Answer per prompt, from the cache or from the handler, with tokens and cost, under the budget.
Not here: which rows are asked (`query`), how a provider is reached (the handlers).
"""
