"""Where a run is written and shown: the run log on disk and the console."""
