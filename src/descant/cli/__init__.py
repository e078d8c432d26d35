"""The command ``descant``."""
