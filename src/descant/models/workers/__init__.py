"""Workers: where engines run."""
