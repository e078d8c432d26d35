"""Losses as pure functions of log-probabilities: shapes, formulas and sources in the docstrings."""
