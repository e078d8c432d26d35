"""Where the metrics of a run go, in addition to the run log: loggers, and the feeds of trackers."""
