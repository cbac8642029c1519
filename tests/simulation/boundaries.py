"""The places where the engine does I/O: enumerated from its source, recognised on the stack."""

import ast
import inspect
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, TypeAlias

import dagster_claude_batch

PACKAGE: Final = Path(dagster_claude_batch.__file__).parent

VERBS: Final = frozenset(
    {
        "cancel",
        "count_tokens",
        "create",
        "create_from_body",
        "delete",
        "download",
        "list",
        "look",
        "model",
        "model_and_time",
        "results",
        "retrieve",
    }
)
"""What the Claude resource can be asked."""

NOT_THE_ENGINE: Final = {
    "sensor": "has no ledger and pays for nothing; what it reads is asked again at its next tick",
    "estimate": "only reads, and pays for nothing",
    "preflight.check_shape:transact": "no world refuses all: tests/engine/test_first_mistakes",
    "preflight.count_tokens:count_tokens": "only reads, and pays for nothing",
    "report": "only reads, after everything has landed",
    "deleting": "only what has landed, and the next run does it again: engine/test_remote_results",
    "spending": "only reads, and is no part of any run",
    "advance.Engine.partitions_of_run:transact": "only reads, before anything else is done",
    "by_hand": "reads, before it does what runs do; or forgets, for which no world is old enough: "
    "tests/engine/test_pruning",
    "steadiness.Steadiness.check:transact": "only reads, and is asked again when it is stale",
    "advance.Engine.rehearse:transact": "is rolled back, and pays for nothing",
    "resource": "the verbs themselves",
    "warehouse": "the definition of `transact`",
    "collecting.Collector._sees_older:list": "only reads, and is asked again at the next look",
    "collecting.Collector._ask_for:look": "only reads, and is asked again at the next look",
    "preflight.check_for_rehearsal:model_and_time": "only reads, and pays for nothing",
    "results._is_gone:retrieve": "only reads, and is asked again at the next look",
    "collecting.Collector._is_not_ours:transact": "no world has strangers: tests/engine/test_doubt",
    "collecting.Collector._questions_of:transact": "only reads, for rows that share a request: "
    "tests/engine/test_packing",
    "reconciling._record_copy:transact": "needs an answer hours late: tests/engine/test_doubt",
}
"""Modules, packages and sites that no schedule crashes at, and why that is no loss."""


Place: TypeAlias = tuple[str, str]
"""A site and a moment."""


@dataclass(frozen=True, order=True)
class Site:
    """One call in the source: ``name`` says where, and stays when lines move."""

    name: str
    first_line: int
    last_line: int


@cache
def sites_of(module: str) -> tuple[Site, ...]:
    """All calls of a module that reach the database or the API."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, ast.Call]] = []
    _collect(tree, [module], found)
    names = Counter(name for name, _ in found)
    seen = Counter[str]()
    sites: list[Site] = []
    for name, call in found:
        seen[name] += 1
        numbered = f"{name}#{seen[name]}" if names[name] > 1 else name
        sites.append(Site(numbered, call.lineno, call.end_lineno or call.lineno))
    return tuple(sites)


def _collect(node: ast.AST, path: list[str], found: list[tuple[str, ast.Call]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and (verb := _verb(child)):
            found.append((f"{'.'.join(path)}:{verb}", child))
        is_scope = isinstance(child, ast.FunctionDef | ast.ClassDef)
        _collect(child, [*path, child.name] if is_scope else path, found)


def _verb(call: ast.Call) -> str | None:
    """What is called, if it is `….transact(…)` or `….claude.<verb>(…)`."""
    function = call.func
    if not isinstance(function, ast.Attribute):
        return None
    if function.attr == "transact":
        return "transact"
    owner = function.value
    of_claude = getattr(owner, "attr", None) == "claude" or getattr(owner, "id", None) == "claude"
    return function.attr if of_claude and function.attr in VERBS else None


def engine_sites() -> list[str]:
    """The sites of the whole package that have to be crashed at."""
    modules = sorted(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in NOT_THE_ENGINE
    )
    names = [site.name for module in modules for site in sites_of(module)]
    return [name for name in names if name not in NOT_THE_ENGINE]


def places_of(site: str) -> list[Place]:
    """The moments of a site at which a process can end: within it only a transaction has one."""
    moments = ("before", "commit", "after") if ":transact" in site else ("before", "after")
    return [(site, moment) for moment in moments]


def site_here() -> str:
    """The engine's call that led here, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        module = _module_of(frame)
        found = _site_of(frame, module) if module is not None else None
        if found is not None:
            return found
        frame = frame.f_back
    return "nowhere"


def _site_of(frame: FrameType, module: str) -> str | None:
    """The call that a frame executes, or whose pages it is reading."""
    line, begin = frame.f_lineno, frame.f_code.co_firstlineno
    around = [s for s in sites_of(module) if s.first_line <= line <= s.last_line]
    if around:
        return max(around, key=lambda site: site.first_line).name
    # What `list` gives is fetched when it is read, which is below the call.
    lazy = [s for s in sites_of(module) if ":list" in s.name and begin < s.first_line < line]
    return max(lazy, key=lambda site: site.first_line).name if lazy else None


@cache
def _module_name(filename: str) -> str | None:
    path = Path(filename)
    if path.parent != PACKAGE or path.stem in {"resource", "warehouse"}:
        return None
    return path.stem


def _module_of(frame: FrameType) -> str | None:
    return _module_name(frame.f_code.co_filename)


def _parse_all() -> None:
    """Parse the package in the one thread that there is yet: Python 3.11 does it badly in several.

    There `ast.parse` may fail with a SystemError if another thread parses too.
    """
    for path in PACKAGE.rglob("*.py"):
        sites_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


_parse_all()
