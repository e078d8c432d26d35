"""Integrations: descant's callbacks in the trainers of other libraries."""
