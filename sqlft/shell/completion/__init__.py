"""What Tab offers, by the place of the cursor.

Called by the prompt.  In: the text before the cursor, the words of the open database.  Out: suggestions.
"""
