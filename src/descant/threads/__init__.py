"""Threads: conversations as text and as tokens, their rendering and their files."""
