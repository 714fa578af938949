"""A search: what was found, what it was chosen from, and what plain defaults gave."""
