"""`python -m training fit | export`."""

from training.cli import app

app()
