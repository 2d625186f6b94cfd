"""What is wrong or odd in training rows, before anything is trained.

Called by `data.prepare` for a training and by ANALYZE TRAINING DATA.  In: conversations.  Out: findings, each with its
rows and what to do.  Checks of structure, of texts and of near duplicates; `report` puts figures beside them.
"""
