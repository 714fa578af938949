"""The paper's claims against runs: a page that says of each whether they reproduce it, do not, or cannot decide."""
