"""How the modules of demo/, benchmarks/ and tests/ import each other, and how long the tests are."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from demo.pack import ROOT

ROOMS = ("demo", "benchmarks", "tests")
MOST = 400
"""Lines of a file of tests."""


def imports(file: Path) -> set[str]:
    """Dotted names of the modules of demo/, benchmarks/ and tests/ that a file imports anywhere, inside functions as well."""
    package = list(file.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in ROOMS and (ROOT / f"{name.replace('.', '/')}.py").is_file()}


def modules(room: str) -> dict[str, set[str]]:
    found = {".".join(file.relative_to(ROOT).with_suffix("").parts): imports(file) for file in (ROOT / room).rglob("*.py")}
    assert len(found) > 10
    return found


def test_no_circle_among_the_benchmarks() -> None:
    graph = modules("benchmarks")
    order = list(TopologicalSorter(graph).static_order())
    assert {"benchmarks.speed.measure", "benchmarks.figures"} <= graph["benchmarks.speed.probe"]
    assert set(graph) <= set(order)


def test_nothing_in_demo_imports_the_benchmarks() -> None:
    for name, imported in modules("demo").items():
        assert not {one for one in imported if one.startswith("benchmarks")}, name


def test_tests_share_through_support_alone() -> None:
    """No test imports another: what several use is in tests/support/, which imports no test either."""
    for name, imported in modules("tests").items():
        assert not {one for one in imported if one.split(".")[-1].startswith("test_") or one.endswith("conftest")}, name


def test_no_file_of_tests_is_too_long_to_read() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        assert len(file.read_text("utf-8").splitlines()) <= MOST, file.relative_to(ROOT)
