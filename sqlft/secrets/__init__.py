"""Keys and passwords: kept as references, never shown.

Called wherever options with secrets are stored, revealed or printed.  `references` keeps and resolves them; texts lose
theirs in `sqlft.secrets.redact`.
"""
