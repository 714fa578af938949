"""The comparison of runs as a table and a figure."""
