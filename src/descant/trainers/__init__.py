"""Trainers: one training loop, and what each algorithm adds to it."""
