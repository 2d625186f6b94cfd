"""Keys and passwords: kept as references, never shown.

Called wherever options with secrets are stored, revealed or printed.  `references` keeps and resolves them, `redact`
stars out what looks like one.
"""
