"""Results as text: tables that fit the screen, CSV, JSON, markdown, HTML.

Called by the shell.  In: a result, a mode, a width.  Out: lines.
"""
