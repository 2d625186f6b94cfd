"""What makes training and asking fast beside the libraries: each with what it computes and what it gains.

Called by `train`, `predict.torch` and `predict.score`.
"""
