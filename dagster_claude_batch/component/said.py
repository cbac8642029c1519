"""What is said of an argument in Python is said of it in YAML too."""

import inspect
import re


def said_of(documented: object, argument: str) -> str | None:
    """What a docstring says of one argument, as one line."""
    text = inspect.getdoc(documented) or ""
    entry = rf"^    {argument}: (.+?)\n?(?=\n    \w+: |\n\n|\n?\Z)"
    found = re.search(entry, text, re.MULTILINE | re.DOTALL)
    return None if found is None else " ".join(found.group(1).replace("``", "`").split())
