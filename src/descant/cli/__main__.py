"""``python -m descant.cli`` is ``descant``."""

from descant.cli.app import app

app(prog_name="descant")
