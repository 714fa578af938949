"""Tables of trained outcomes: what training at many sites of a model came to, and how scores are judged by it."""

from steerscope.experiments.site_tables.admitted import admitted
from steerscope.experiments.site_tables.judging import Judgement, judge, sites_of
from steerscope.experiments.site_tables.search_curves import search_curves
from steerscope.experiments.site_tables.table import Base, SiteOutcome, SiteRun, SiteTable

__all__ = [
    "Base",
    "Judgement",
    "SiteOutcome",
    "SiteRun",
    "SiteTable",
    "admitted",
    "judge",
    "search_curves",
    "sites_of",
]
