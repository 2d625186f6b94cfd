"""Fine-tune and run language models from SQL, inside DuckDB."""
