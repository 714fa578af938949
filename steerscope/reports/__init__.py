"""How results look: figures, tables and pages, in one look for all.

Every ``plot_*`` takes a result and returns a matplotlib ``Figure``; it raises :class:`~steerscope.InputError` where the
result does not hold what it draws, or where the extra ``report`` is not installed. Names are loaded when first used.
Below there is one room per kind of result, and what all of them share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerscope.lazy import door

if TYPE_CHECKING:
    from steerscope.reports.agreement_figure import plot_agreements
    from steerscope.reports.comparison.figures import plot_comparison
    from steerscope.reports.comparison.page import write_comparison
    from steerscope.reports.comparison.tables import comparison_table, print_comparison
    from steerscope.reports.plain_figures import Panel, Picture, picture, plot_lines, plot_rows
    from steerscope.reports.ranking.figures import (
        plot_gain_and_cost,
        plot_greedy_growth,
        plot_heat_map,
        plot_kinds_over_depth,
        plot_learning_curves,
        plot_other_scores,
        plot_ranking,
    )
    from steerscope.reports.ranking.folder import write_report
    from steerscope.reports.ranking.tables import greedy_table, kind_table, print_ranking, site_table
    from steerscope.reports.ranking.trained import plot_predicted_against_trained
    from steerscope.reports.searching.figures import plot_contenders, plot_tested
    from steerscope.reports.searching.page import write_search
    from steerscope.reports.site_tables.figures import plot_foreseen, plot_losses, plot_search
    from steerscope.reports.site_tables.judgement_page import write_judgements
    from steerscope.reports.site_tables.page import write_site_table
    from steerscope.reports.tables import TextTable, plain_table
    from steerscope.reports.validation.page import write_validation
    from steerscope.reports.validation.tables import print_validation, score_table, trained_table
    from steerscope.reports.verification.block_figures import plot_conditioning, plot_modulation, plot_stream_shares
    from steerscope.reports.verification.edit_figures import plot_oracle_spectra, plot_residual_map, plot_strength
    from steerscope.reports.verification.folder import write_verification
    from steerscope.reports.verification.margins import plot_margins
    from steerscope.reports.verification.proposition_figures import plot_curves, plot_verdicts
    from steerscope.reports.verification.slope_figures import plot_block_slopes, plot_radius, plot_slopes
    from steerscope.reports.verification.tables import print_verification, proposition_table

_HOMES = {
    # Of a ranking
    "plot_ranking": "reports.ranking.figures",
    "plot_heat_map": "reports.ranking.figures",
    "plot_kinds_over_depth": "reports.ranking.figures",
    "plot_gain_and_cost": "reports.ranking.figures",
    "plot_greedy_growth": "reports.ranking.figures",
    "plot_learning_curves": "reports.ranking.figures",
    "plot_other_scores": "reports.ranking.figures",
    # Of a validation
    "plot_predicted_against_trained": "reports.ranking.trained",
    "score_table": "reports.validation.tables",
    "trained_table": "reports.validation.tables",
    # Of a verification
    "plot_verdicts": "reports.verification.proposition_figures",
    "plot_curves": "reports.verification.proposition_figures",
    "plot_radius": "reports.verification.slope_figures",
    "plot_conditioning": "reports.verification.block_figures",
    "plot_stream_shares": "reports.verification.block_figures",
    "plot_oracle_spectra": "reports.verification.edit_figures",
    "plot_residual_map": "reports.verification.edit_figures",
    "plot_modulation": "reports.verification.block_figures",
    "plot_strength": "reports.verification.edit_figures",
    "plot_slopes": "reports.verification.slope_figures",
    "plot_block_slopes": "reports.verification.slope_figures",
    "plot_margins": "reports.verification.margins",
    "proposition_table": "reports.verification.tables",
    # Of a site table, and of scores judged by it
    "plot_losses": "reports.site_tables.figures",
    "plot_foreseen": "reports.site_tables.figures",
    "plot_search": "reports.site_tables.figures",
    # Of a validation, and of scores judged by a table
    "plot_agreements": "reports.agreement_figure",
    # Of a search
    "plot_tested": "reports.searching.figures",
    "plot_contenders": "reports.searching.figures",
    # Of a comparison
    "plot_comparison": "reports.comparison.figures",
    "comparison_table": "reports.comparison.tables",
    # Of any numbers
    "Panel": "reports.plain_figures",
    "Picture": "reports.plain_figures",
    "picture": "reports.plain_figures",
    "plot_lines": "reports.plain_figures",
    "plot_rows": "reports.plain_figures",
    "TextTable": "reports.tables",
    "plain_table": "reports.tables",
    # Tables of a ranking
    "site_table": "reports.ranking.tables",
    "kind_table": "reports.ranking.tables",
    "greedy_table": "reports.ranking.tables",
    # In a terminal
    "print_ranking": "reports.ranking.tables",
    "print_validation": "reports.validation.tables",
    "print_verification": "reports.verification.tables",
    "print_comparison": "reports.comparison.tables",
    # Folders
    "write_report": "reports.ranking.folder",
    "write_verification": "reports.verification.folder",
    "write_comparison": "reports.comparison.page",
    "write_validation": "reports.validation.page",
    "write_search": "reports.searching.page",
    "write_site_table": "reports.site_tables.page",
    "write_judgements": "reports.site_tables.judgement_page",
}

_DRAWN = {name for name, home in _HOMES.items() if name.startswith(("plot_", "write_")) or home.endswith("figures")}

__getattr__, __dir__ = door(__name__, _HOMES, _DRAWN)

__all__ = [
    "Panel",
    "Picture",
    "TextTable",
    "comparison_table",
    "greedy_table",
    "kind_table",
    "picture",
    "plain_table",
    "plot_agreements",
    "plot_block_slopes",
    "plot_comparison",
    "plot_conditioning",
    "plot_contenders",
    "plot_curves",
    "plot_foreseen",
    "plot_gain_and_cost",
    "plot_greedy_growth",
    "plot_heat_map",
    "plot_kinds_over_depth",
    "plot_learning_curves",
    "plot_lines",
    "plot_losses",
    "plot_margins",
    "plot_modulation",
    "plot_oracle_spectra",
    "plot_other_scores",
    "plot_predicted_against_trained",
    "plot_radius",
    "plot_ranking",
    "plot_residual_map",
    "plot_rows",
    "plot_search",
    "plot_slopes",
    "plot_stream_shares",
    "plot_strength",
    "plot_tested",
    "plot_verdicts",
    "print_comparison",
    "print_ranking",
    "print_validation",
    "print_verification",
    "proposition_table",
    "score_table",
    "site_table",
    "trained_table",
    "write_comparison",
    "write_judgements",
    "write_report",
    "write_search",
    "write_site_table",
    "write_validation",
    "write_verification",
]
