"""The committed stubs are those of proto/: made again, they are the same to the byte."""

from __future__ import annotations

import filecmp
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = sorted(path.relative_to(ROOT / "proto") for path in ROOT.glob("proto/**/*.proto"))
REMEDY = "python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. " + " ".join(
    f"proto/{path}" for path in PROTOS
)


def test_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    assert {path.parts[0] for path in PROTOS} == {"coproc", "storage_tier"}
    common = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{common}", *outputs, *map(str, PROTOS)])
    assert code == 0

    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*")}
    committed = {
        path.relative_to(ROOT)
        for package in ("coproc", "storage_tier")
        for path in ROOT.glob(f"{package}/**/*_pb2*.py*")
    }
    committed = {path for path in committed if "__pycache__" not in path.parts}
    assert committed == made, f"run: {REMEDY}"
    stale = sorted(str(path) for path in made if not filecmp.cmp(tmp_path / path, ROOT / path, shallow=False))
    assert not stale, f"run: {REMEDY}"
