"""Graders: a number for a thread, and statistics of what was graded."""
