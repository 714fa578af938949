"""Tasks to rank and train on."""
