"""Imports point downward only: one table says which package may import which."""

import ast
from pathlib import Path

import powerclip

SOURCE = Path(powerclip.__file__).parent

LEAVES = {"errors", "config", "types", "tasks", "files"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "types": set(),
    "tasks": set(),
    "config": set(),
    "recipes": {"config", "errors"},
    "distributed": {"config", "errors", "files"},
    "runs": {*LEAVES, "distributed"},
    "regions": LEAVES,
    "phrases": LEAVES,
    "alignment": LEAVES,
    "model": LEAVES,
    "data": {*LEAVES, "phrases", "regions"},
    "scenes": {*LEAVES, "phrases", "regions", "data"},
    "prepare": {*LEAVES, "phrases", "regions", "data", "scenes"},
    "loss": {*LEAVES, "alignment", "distributed"},
    "evaluate": {*LEAVES, "distributed", "model", "data", "scenes", "phrases", "regions", "alignment", "runs"},
    "train": {*LEAVES, "distributed", "model", "loss", "data", "regions", "phrases", "evaluate", "runs"},
    "report": {*LEAVES, "model", "data", "scenes", "regions", "phrases", "alignment", "evaluate", "runs"},
}
TOP = {"cli", "compare", "demo", "__init__"}


def imports_of(path: Path) -> set[str]:
    """First-level powerclip modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "powerclip":
                names = [f"powerclip.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("powerclip.")}
    return found


def test_every_import_points_downward():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room in TOP:
            continue
        assert room in MAY_IMPORT, f"{path}: say in MAY_IMPORT what {room} may import"
        for name in imports_of(path) - {room, "__version__"} - MAY_IMPORT[room]:
            wrong.append(f"{path.relative_to(SOURCE)} imports powerclip.{name}")
    assert not wrong, "\n".join(wrong)


def test_no_allowed_values_are_declared_twice():
    declared: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                key = ", ".join(sorted(ast.unparse(value) for value in values))
                declared.setdefault(key, []).append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert declared
    twice = {key: places for key, places in declared.items() if len(places) > 1}
    assert not twice, f"declare each in config.py and import it: {twice}"


def test_only_the_towers_import_open_clip():
    users = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if any(
            (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "open_clip" for a in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "open_clip")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert users == {
        "model/towers.py",
        "model/transforms.py",
        "evaluate/datasets/prompts.py",
    }  # the latter: ImageNet's class names and prompts
