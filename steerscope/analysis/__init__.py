"""From a real model and examples to a ranking of its sites, with uncertainty, and the report of it."""
