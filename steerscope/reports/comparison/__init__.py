"""Runs side by side: table and figure."""
