"""A validation: which scores foresaw training, as tables."""
