"""How rows are matched between what was selected from the source and our own tables.

A selected relation carries the key as ``k0`` …, the `include` columns as ``i0`` … and
``partition``; our tables carry the columns' own names and ``_partition``.
"""

from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.identifiers import quote_identifier


def selected_is_ours(declaration: Declaration, selected: str, ours: str) -> str:
    """A selected row is a row of our tables."""
    keys = [
        f"{selected}.k{number} = {ours}.{quote_identifier(name)}"
        for number, name in enumerate(declaration.row_key)
    ]
    return " AND ".join([*keys, f"{selected}.partition IS NOT DISTINCT FROM {ours}._partition"])


def selected_is_selected(declaration: Declaration, left: str, right: str) -> str:
    """A selected row is a row of another selected relation."""
    keys = [f"{left}.k{number} = {right}.k{number}" for number in range(len(declaration.row_key))]
    return " AND ".join([*keys, f"{left}.partition IS NOT DISTINCT FROM {right}.partition"])


def ours_is_ours(declaration: Declaration, left: str, right: str) -> str:
    """A row of one of our tables is a row of another one."""
    names = [quote_identifier(name) for name in declaration.row_key]
    keys = [f"{left}.{name} = {right}.{name}" for name in names]
    return " AND ".join([*keys, f"{left}._partition IS NOT DISTINCT FROM {right}._partition"])


def our_columns(declaration: Declaration) -> str:
    """The key and `include` columns of our tables."""
    return ", ".join(map(quote_identifier, (*declaration.row_key, *declaration.include)))


def our_keys_as_selected(declaration: Declaration, ours: str) -> str:
    """The key columns of one of our tables, named as in a selected relation."""
    return ", ".join(
        f"{ours}.{quote_identifier(name)} AS k{number}"
        for number, name in enumerate(declaration.row_key)
    )


def selected_keys(declaration: Declaration) -> str:
    """The key columns of a selected relation."""
    return ", ".join(f"k{number}" for number in range(len(declaration.row_key)))


def selected_columns(declaration: Declaration) -> str:
    """The key and `include` columns of a selected relation, in the order of `our_columns`."""
    include = [f"i{number}" for number in range(len(declaration.include))]
    return ", ".join([selected_keys(declaration), *include])
