"""What the theory's quantities are on a real model: one file per measurement, each a function of model and tokens."""
