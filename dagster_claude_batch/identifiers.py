"""Names that users choose, made safe to stand in SQL."""


def quote_identifier(name: str) -> str:
    """Quote a column, table or schema name for DuckDB.

    Raises:
        ValueError: The name is empty or holds a NUL, which no quoting makes an identifier.
    """
    if not name or "\0" in name:
        raise ValueError(f"{name!r} cannot be an identifier in DuckDB: it is empty or holds a NUL.")
    return '"' + name.replace('"', '""') + '"'
