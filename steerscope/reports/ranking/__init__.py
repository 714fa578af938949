"""A ranking: its page, figures, tables, and the sentences that all of these share."""
