"""Tables of trained outcomes: what training at many sites of a model came to, and how scores are judged by it."""

from steerscope.experiments.site_tables.table import Base, SiteOutcome, SiteRun, SiteTable

__all__ = ["Base", "SiteOutcome", "SiteRun", "SiteTable"]
