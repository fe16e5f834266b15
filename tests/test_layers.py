"""The house stays as it was drawn: a file imports only from lower rows, siblings only their folder's base.

Every import counts, in functions and under TYPE_CHECKING too: one that is deferred is still a dependency.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest row first. A name is a module, or a folder with all its files.
ROWS = [
    ["storage_tier.errors", "storage_tier.words", "storage_tier.file_info"],
    [
        "storage_tier.intrinsics",
        "storage_tier.host",
        "storage_tier.budget",
        "storage_tier.headers",
        "storage_tier.v1",
        "storage_tier.probe",
        "storage_tier.error_table",
    ],
    ["storage_tier.regions", "storage_tier.blocks", "storage_tier.directory"],
    ["storage_tier.writer"],
    ["storage_tier.first_level", "storage_tier.second_level"],
    ["storage_tier.tier", "storage_tier.catalog", "storage_tier.under", "storage_tier.observers"],
    ["storage_tier.wire", "storage_tier.messages", "storage_tier.files"],
    ["storage_tier.streams"],
    ["storage_tier.line"],
    ["storage_tier.client"],
    ["storage_tier.server"],
    ["storage_tier.filesystem", "storage_tier.testing"],
    ["storage_tier"],
    ["coproc.errors", "coproc.probe"],
    ["coproc.layout", "coproc.jit", "coproc.folder", "coproc.schedules"],
    ["coproc.shared", "coproc.consistency", "coproc.optim", "coproc.grads", "coproc.data", "coproc.checkpoint"],
    ["coproc.compression", "coproc.local"],
    ["coproc.http"],
    ["coproc.descent", "coproc.spec", "coproc.v1"],
    ["coproc.wire", "coproc.near"],
    ["coproc.by_line"],
    ["coproc.observers", "coproc.far", "coproc.status", "coproc.mapped"],
    ["coproc.server"],
    ["coproc.model"],
    ["coproc.client", "coproc.cluster"],
    ["coproc"],  # the public face: what a user's program has, and what the rows above may use like one
    ["coproc.exchange"],
    ["coproc.tasks"],
    ["coproc.prefetch"],
    ["coproc.worker", "coproc.ingest", "coproc.parts"],
    ["coproc.pools"],
    ["coproc.peers"],
    ["coproc.modes"],
    ["coproc.training", "coproc.testing", "coproc.bench"],
    ["coproc.spark"],
    ["coproc.trials"],
    ["coproc.contestants", "coproc.hosts", "coproc.report"],
    ["coproc.compare"],
    ["coproc.cli"],
    ["coproc.__main__"],
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
# What a folder's files may import of it, lowest first; `base` where nothing is said.
BASES = {
    "storage_tier.catalog": [
        *(
            "errors",
            "paths",
            "execute",
            "engines",
            "schema",
            "database",
            "entries",
            "lookup",
            "rows",
            "changes",
            "checks",
            "namespace",
        ),
        *("members", "mounts", "replicas", "observers", "claims"),
    ],
    "storage_tier.under": [
        *("redact", "queue", "calls", "base", "entries", "transfers", "failures", "files", "s3"),
        *("objects", "opening"),
    ],
    "storage_tier.observers": [
        *("base", "parameters", "arrow_header", "safetensors_header", "frames", "sealed", "options", "registry"),
        *("restarts", "backlog", "delivery", "files", "answers", "builtin", "process", "calls", "attachment"),
    ],
    "storage_tier.files": [
        *("base", "peers", "settings", "held", "neighbours", "virtual", "under", "eviction", "alone", "loading"),
        *("passing", "observing", "persisting", "publishing", "committing", "tree", "explain", "upkeep", "chores"),
        *("copies", "mounting", "for_observers", "parts"),
    ],
    "storage_tier.client": ["way", "connection", "reading", "writing", "verbs", "client"],
    "storage_tier.server": ["leader", "line", "table", "rpc", "answers", "blocks", "files", "peers", "serving"],
    "storage_tier.filesystem": ["lookup", "reader", "writer", "transaction", "filesystem"],
    "storage_tier.testing": ["memory"],
    "coproc.shared": ["control"],
    "coproc.grads": ["base", "mlp"],
    "coproc.http": ["rounds", "server"],
    "coproc.peers": ["slices", "streams", "blocks"],
    "coproc.optim": ["base", "compiled"],
    "coproc.testing": ["formulas", "deaths", "works"],
    "coproc.modes": ["base", "driver", "vectors", "lockstep"],
    "coproc.training": ["config", "base", "groups", "output", "opening"],
    "coproc.bench": ["base", "limits", "streams", "peers", "ray_peers", "tier_raw", "tier_peers", "far_raw"],
    "coproc.cli": [
        *(
            "base",
            "closing",
            "digits",
            "show",
            "running",
            "fs_options",
            "fs_text",
            "fs_bytes",
            "fs_names",
            "fs_transfer",
        ),
        *("fs_blocks", "fs_places", "fs"),
    ],
    "coproc.trials": ["base", "rates", "teacher", "workloads", "metrics", "record", "memory"],
    "coproc.contestants": ["base", "work", "course"],
    "coproc.hosts": ["base", "links", "namespaces", "stage"],
    "coproc.report": [
        *("words", "marks", "axes", "drawing", "curves", "bars", "tables", "contest", "moments", "figures", "verdict"),
        *("settings", "page"),
    ],
    "coproc.compare": ["grid", "findings", "growing", "learning", "costing", "experiments", "child", "runner"],
    "coproc.observers": ["paths", "gradients", "model_file", "source", "pushing"],
    "coproc.server": [
        "kernels",
        "copying",
        "drain",
        "passes",
        "loop",
        "seatmap",
        "measuring",
        "sweeper",
        "sequencing",
        "engine",
        "models",
        "far",
        "readers",
        "access",
        "creating",
        "checkpoints",
        "restoring",
        "report",
        "service",
        "early",
    ],
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all that is written by hand; a package has its folder's name."""
    found: dict[str, Path] = {}
    for path in sorted([*ROOT.glob("coproc/**/*.py"), *ROOT.glob("storage_tier/**/*.py")]):
        if "_pb2" not in path.name:
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def unit(name: str) -> str:
    """The name in ROWS that a module belongs to: coproc.optim.adam -> coproc.optim."""
    return ".".join(name.split(".")[:2])


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """(module of the project, line) of each import in a file."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from coproc import layout` names a module, `from coproc.layout import x` what is in it.
            inner = [f"{module}.{alias.name}" for alias in node.names]
            targets = sorted({target if target in MODULES else module for target in inner})
        for target in targets:
            if target.split(".")[0] in ("coproc", "storage_tier"):
                yield target, node.lineno


def allowed(name: str, target: str) -> bool:
    here, there = unit(name), unit(target)
    if here != there:
        return ROW.get(there, len(ROWS)) < ROW.get(here, -1)
    if name == here or name.endswith(".__main__"):  # the folder's face
        return True
    bases = [f"{here}.{base}" for base in BASES.get(here, ["base"])]
    return target in bases and (name not in bases or bases.index(target) < bases.index(name))


def test_every_module_has_a_row_and_every_row_its_module() -> None:
    assert {unit(name) for name in MODULES} == set(ROW), "draw the new module into ROWS, or take the lost one out"


def test_the_denominators_of_the_measures_import_nothing_of_the_project() -> None:
    for name in ("coproc.bench.streams", "coproc.bench.tier_raw", "coproc.bench.far_raw"):
        assert list(imports(name, MODULES[name])) == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    wrong = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}"
        for target, line in imports(name, MODULES[name])
        if not allowed(name, target)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_every_form_of_import(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text(
        "import coproc.cli\nfrom coproc import layout, client\nfrom . import base\n"
        "from ..errors import DataError\n"
        "def late():\n    from coproc.pools.spark import run\n    import storage_tier, numpy\n"
    )
    seen = [target for target, _ in imports("coproc.grads.mlp", path)]
    assert seen[0] == "coproc.cli"
    assert seen[1:3] == ["coproc.client", "coproc.layout"]
    assert {"coproc.grads.base", "coproc.errors", "storage_tier"} < set(seen)
    assert not allowed("coproc.grads.mlp", "coproc.cli")
    assert not allowed("coproc.grads.mlp", "coproc.grads.linear")
    assert not allowed("storage_tier.server", "coproc.errors")
    assert allowed("coproc.grads.mlp", "coproc.grads.base")
