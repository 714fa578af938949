"""One pass over the examples, forward and backward, and what it records for every site."""
