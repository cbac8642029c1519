"""Plays the person at the Dagster UI: `python -m example_project`."""
