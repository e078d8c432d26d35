"""Threads: conversations as text and as tokens."""
