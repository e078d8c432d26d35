"""The run log: the record of a run, in one SQLite file."""
