"""Search for the site to train at: ranked first, trained in packs, halved, and finished where it is best."""

from steerscope.experiments.searching.options import SearchOptions
from steerscope.experiments.searching.result import Contender, SearchResult
from steerscope.experiments.searching.search_sites import search_sites

__all__ = ["Contender", "SearchOptions", "SearchResult", "search_sites"]
