"""Texts of the user, chunked, embedded and indexed in tables of their own DuckDB file, and searched.

Called by `sqlft.statements` (CREATE KNOWLEDGE_BASE and the like), by `sqlft.query` for a SELECT that reads one, and by
`sqlft.evaluation`.  Rows come in, and go out as chunks with their relevance.

    rows -> chunking -> embedding -> tables            questions -> embedding, words -> search -> reranking
"""
