"""Imports point down only: types and maths know nothing of models, models nothing of training."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "minillm"
LAYERS = [
    {"common", "losses", "divergences"},
    {"parallel"},
    {"objectives", "models", "data"},
    {"rollout"},
    {"evaluation", "planning"},
    {"train"},
    {"testing", "experiments", "api"},
    {"chain", "compare", "export", "generate", "plan", "serve"},  # commands
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minillm"):
            below = node.module.split(".")[1:]
            rooms |= {below[0]} if below else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minillm.")}
    return rooms


def test_every_file_has_a_layer():
    files = {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert files == set(LEVEL)


def test_imports_point_down():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if room(path) != "__init__"
        for other in imported_rooms(path) - {room(path)}
        if LEVEL[other] > LEVEL[room(path)]
    ]
    assert not upward


def test_one_room_speaks_to_other_processes():
    files = {
        room(path)
        for path in PACKAGE.rglob("*.py")
        if re.search(r"torch\.distributed|torch import distributed|_internal\.distributed", path.read_text())
    }
    assert files == {"parallel"}


def test_no_file_outgrows_one_idea():
    long = {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert not long


def test_rooms_do_not_import_each_other():
    imports = {name: set() for name in LEVEL}
    for path in PACKAGE.rglob("*.py"):
        if room(path) != "__init__":
            imports[room(path)] |= imported_rooms(path) - {room(path)}
    mutual = {
        tuple(sorted((one, other))) for one, others in imports.items() for other in others if one in imports[other]
    }
    assert not mutual


def test_no_file_imports_itself_by_way_of_others():
    """Packages' __init__.py, which only gather names, are left out; imports for type checkers count."""
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    imports = {}
    for name, path in files.items():
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        pairs = [(node.module or "", alias.name) for node in found for alias in node.names]
        imports[name] = {each for module, item in pairs for each in (module, f"{module}.{item}") if each in files}
    left = dict(imports)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left
