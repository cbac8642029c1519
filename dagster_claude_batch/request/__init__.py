"""A row → request parameters: SQL that renders, hashes and serializes inside DuckDB.

`template` and `parts` are what a prompt is made of, `function` is the slower way out; a `leaf` is
a place where the row matters, `shape` all of a request, `caching` its breakpoint.
"""
