"""Graders: they turn a thread into a number, and keep the statistics of what they graded."""
