"""Placements: where an engine runs."""
