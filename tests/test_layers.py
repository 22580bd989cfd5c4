"""Imports point downward only and never in circles: one table says which package may import which."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import powerclip

SOURCE = Path(powerclip.__file__).parent
TESTS = Path(__file__).parent

LEAVES = {"errors", "cores", "config", "types", "tasks", "files", "pixels", "progress", "devices"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "types": set(),
    "progress": {"errors"},
    "tasks": set(),
    "config": {"errors"},
    "pixels": {"errors"},
    "devices": {"errors"},
    "cores": set(),
    "launcher": {"errors"},
    "recipes": {"config", "errors"},
    "distributed": {"config", "devices", "errors", "files", "launcher"},
    "runs": {*LEAVES, "distributed"},
    "regions": LEAVES,
    "phrases": LEAVES,
    "alignment": LEAVES,
    "model": LEAVES,
    "data": {*LEAVES, "phrases", "regions"},
    "scenes": {*LEAVES, "phrases", "regions", "data"},
    "prepare": {*LEAVES, "phrases", "regions", "data", "scenes"},
    "loss": {*LEAVES, "alignment", "distributed"},
    "evaluate": {*LEAVES, "distributed", "model", "data", "scenes", "phrases", "regions", "alignment", "loss", "runs"},
    "train": {*LEAVES, "distributed", "model", "loss", "data", "evaluate", "runs"},
    "export": {*LEAVES, "model", "data", "scenes", "evaluate", "report", "runs"},
    "report": {
        *LEAVES,
        "distributed",
        "model",
        "data",
        "scenes",
        "regions",
        "phrases",
        "alignment",
        "evaluate",
        "runs",
    },
    "explore": {*LEAVES, "model", "data", "regions", "phrases", "evaluate", "report"},
}
TOP = {"cli", "commands", "compare", "demo", "embed", "interpolate", "silence", "__init__", "__main__"}


def modules_of(folder: Path, package: str) -> dict[str, ast.Module]:
    """Dotted name of every module in a folder, with its syntax tree."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules_of(SOURCE, "powerclip")


def imports_of(tree: ast.Module) -> list[tuple[str, str]]:
    """(module, name) of everything that is imported, wherever in the file; the name is "" where it is a module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole, "") if whole in MODULES else (node.module or "", alias.name))
    return found


def rooms_imported() -> dict[str, set[str]]:
    """Which rooms every room imports, a room being a package or module directly under powerclip."""
    found: dict[str, set[str]] = {}
    for name, tree in MODULES.items():
        room = name.split(".")[1] if "." in name else "__init__"
        others = {module.split(".")[1] for module, _ in imports_of(tree) if module.startswith("powerclip.")}
        found.setdefault(room, set()).update(others - {room})
    return found


def test_every_import_points_downward():
    imported = rooms_imported()
    assert MAY_IMPORT.keys() == imported.keys() - TOP, "say in MAY_IMPORT what every room may import"
    wrong = {room: imported[room] - allowed for room, allowed in MAY_IMPORT.items() if imported[room] - allowed}
    assert not wrong, f"imports that do not point downward: {wrong}"
    TopologicalSorter(MAY_IMPORT).prepare()


def test_no_room_may_import_more_than_it_does():
    """But for the leaves, which all may."""
    imported = rooms_imported()
    unused = {room: allowed - LEAVES - imported[room] for room, allowed in MAY_IMPORT.items()}
    unused = {room: names for room, names in unused.items() if names}
    assert not unused, f"take these out of MAY_IMPORT: {unused}"


def test_no_imports_go_in_a_circle():
    """Neither between packages nor inside one, and not in functions or for types only either."""
    graph = {
        name: {module for module, _ in imports_of(tree)} & (MODULES.keys() - {name}) for name, tree in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_no_module_uses_a_private_name_of_another():
    wrong = []
    for name, tree in MODULES.items():
        imported = [(module, member) for module, member in imports_of(tree) if module.startswith("powerclip")]
        wrong += [f"{name} imports {module}.{member}" for module, member in imported if private(member)]
        aliases = {module.rpartition(".")[2] for module, member in imported if not member}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                wrong += [f"{name} uses {node.value.id}.{node.attr}"] if private(node.attr) else []
    assert not wrong, "\n".join(wrong)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_test_module_imports_another():
    """What several need is in tests.support."""
    wrong = []
    for name, tree in modules_of(TESTS, "tests").items():
        found = [f"{module}.{member}" for module, member in imports_of(tree)]
        wrong += [f"{name} imports {path}" for path in found if ".test_" in path or path.startswith("test_")]
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
    assert not twice, f"declare each in config/values.py and import it: {twice}"


def test_few_modules_import_open_clip():
    users = {
        name for name, tree in MODULES.items() if any(path.split(".")[0] == "open_clip" for path, _ in imports_of(tree))
    }
    assert users == {
        "powerclip.model.create",
        "powerclip.model.hub",
        "powerclip.model.start",
        "powerclip.model.tokenizer",
        "powerclip.model.towers",
        "powerclip.model.transforms",
        "powerclip.export.open_clip_average",  # goes with what is exported
        "powerclip.export.open_clip_folder",
        "powerclip.export.tokenizer_files",
        "powerclip.export.transformers_folder",
        "powerclip.phrases.tokens",  # the tokenizer that the published shards' phrases are positions of
        "powerclip.evaluate.datasets.prompts",  # ImageNet's class names and prompts
    }
