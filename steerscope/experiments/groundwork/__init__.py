"""What sweeps, searches and validations start from: parts of a task, tokenised, what is trained, a kept ranking."""
