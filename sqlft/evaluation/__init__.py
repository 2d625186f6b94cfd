"""EVALUATE: how good answers are, and whether one version is better than another.

Called by the EVALUATE statement.  In: rows with right answers, versions, metrics.  Out: scores with intervals and the
paired comparison of versions, and of versions with their bases on general questions (`forgetting`), kept in the
catalog.  Not here: the metrics themselves (`metrics`).
"""
