"""Keys and passwords: kept as references, never shown.

Called wherever options with secrets are stored, revealed or printed.  `references` keeps and resolves them, in the
folders of the user that `home` names.  Not here: texts and errors without secrets (`sqlft.redact`).
"""
