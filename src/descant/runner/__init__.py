"""The runner: drives callbacks along with a training loop."""
