"""Data: files and rows read as threads."""
