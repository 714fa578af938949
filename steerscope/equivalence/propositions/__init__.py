"""The theory as executable propositions, P1 to P42: one file per group, each with its claims and their checks."""
