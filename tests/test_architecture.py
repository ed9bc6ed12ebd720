"""Who may import whom, what may be loaded when, and how big things may grow (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "kvledger"
FILES = sorted(PACKAGE.rglob("*.py"))
ALL = {
    "cache",
    "tasks",
    "recipe",
    "records",
    "zoo",
    "methods",
    "hf",
    "run",
    "train",
    "report",
    "critical",
    "harness",
    "serve",
    "cli",
}

# The methods are loaded by `recipe.registry` by name, so that the recipe itself depends on nobody.
MAY_IMPORT = {
    "__init__": set(),
    "cache": set(),
    "tasks": set(),
    "recipe": set(),
    "records": set(),
    "zoo": {"tasks"},
    "methods": {"cache", "recipe"},
    "hf": {"methods", "cache", "zoo", "recipe"},
    "run": {"hf", "tasks", "recipe", "records", "critical"},
    "train": {"hf", "methods", "recipe", "cache", "tasks"},
    "report": {"records", "critical"},
    "critical": set(),
    "harness": {"hf", "recipe", "tasks", "zoo"},
    "serve": {"hf", "methods", "recipe", "tasks"},
    "cli": ALL,
    "__main__": {"cli"},
}
NO_TORCH = ("kvledger", "kvledger.cli", "kvledger.tasks", "kvledger.report", "kvledger.records", "kvledger.recipe")


def part(path: Path) -> str:
    """The folder or single file of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, module: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import of this package below `tree`; relative ones resolved against `module`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name == "kvledger" or name.startswith("kvledger.")]


def offences(path: Path, source: str) -> list[str]:
    """file:line of each import that the table forbids."""
    module = ".".join(["kvledger", *path.relative_to(PACKAGE).with_suffix("").parts])
    own = part(path)
    bad = []
    for line, name in imports(ast.parse(source), module):
        target = name.split(".")[1] if "." in name else ""  # "" is the package itself: its version
        if target in ALL and target != own and target not in MAY_IMPORT[own]:
            bad.append(f"{path.relative_to(ROOT)}:{line}: {own} may not import {target}")
    return bad


def test_every_part_of_the_package_has_a_row_in_the_table() -> None:
    assert {part(path) for path in FILES} <= set(MAY_IMPORT)


def test_imports_follow_the_table() -> None:
    assert [line for path in FILES for line in offences(path, path.read_text())] == []


@pytest.mark.parametrize(
    "file, source",
    [
        ("cache/arena.py", "from kvledger.methods.base import View"),
        ("cache/arena.py", "def f():\n    import kvledger.hf.cache"),
        ("methods/base.py", "from kvledger import hf"),
        ("methods/base.py", "from ..hf import cache"),
        ("report/page.py", "from kvledger.run import sweep"),
        ("tasks/base.py", "from kvledger.cache.arena import Arena"),
    ],
)
def test_a_forbidden_import_is_named(file: str, source: str) -> None:
    line = source.count("\n") + 1
    (offence,) = offences(PACKAGE / file, source)
    assert offence.startswith(f"src/kvledger/{file}:{line}: ")


def test_the_table_only_lets_the_scripts_of_the_zoo_see_the_tasks() -> None:
    assert imports(ast.parse((PACKAGE / "zoo" / "__init__.py").read_text()), "kvledger.zoo") == []


def test_the_command_line_imports_late() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert imports(top, "kvledger.cli") == []


@pytest.mark.parametrize("module", NO_TORCH)
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_public_names_are_there_and_few() -> None:
    import kvledger

    assert len(kvledger.__all__) <= 30
    assert all(getattr(kvledger, name) is not None for name in kvledger.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kvledger.nothing


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_sizes_of_the_house(path: Path) -> None:
    source = path.read_text()
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 45
    ]
    assert long == []
    assert source.count("\n") <= 300
