"""What makes the documents from result files, and the runs behind them; not part of the package.

Run from a checkout: ``python -m studies.claims``, ``python -m studies.validation``, ``python -m studies.theory``.
"""
