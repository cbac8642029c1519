"""Everything that this package raises on purpose."""


class ClaudeBatchError(Exception):
    """The base of every error of this package."""
