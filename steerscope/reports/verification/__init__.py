"""A verification of the theory: its page, figures and tables."""
