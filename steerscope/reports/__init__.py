"""What results look like: one room per kind of result (pages, figures, tables), and what all of them share."""
