"""Rated text snippets, their sentiment asked of Claude: what a user's project looks like."""

# Not `defs`: importing the folder of that name would put the folder in its place.
from example_project.definitions import defs as project_defs

__all__ = ["project_defs"]
