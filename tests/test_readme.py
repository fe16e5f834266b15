"""What the README shows works as it is written, and nothing in the papers is still to be filled."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # One step of 0.1 towards gradients of -1 and 1, from zeros.
    assert re.search(r"'w': array\(\[0\.1, .*'b': array\(\[-0\.1\]", done.stdout), done.stdout
    assert re.search(r"^\{'w': array\(\[-0\.1, -0\.1, -0\.1, -0\.1\]", done.stdout, re.MULTILINE), done.stdout


def test_the_extras_of_the_commands_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = {name for found in re.findall(r"pip install (?:-e )?'\.\[(.*?)\]'", README) for name in found.split(",")}
    assert {"demo", "test"} <= told <= set(extras)


@pytest.mark.parametrize("paper", sorted(path.name for path in ROOT.glob("*.md")))
def test_every_paper_is_filled_and_its_links_lead_somewhere(paper: str) -> None:
    text = (ROOT / paper).read_text()
    assert "TO FILL" not in text
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_what_is_to_be_typed_is_no_word_of_the_shell() -> None:
    """In bash `coproc train` runs `train` as a coprocess, and says nothing. Only the first command is written so."""
    typed = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    assert [line for line in typed if re.search(r"(^|&& )coproc ", line)] == ["pip install '.[demo]' && coproc train"]
    for name, kind in (("coproc", "keyword"), ("coprocessor", "")):
        asked = subprocess.run(["bash", "-c", f"type -t {name} || true"], capture_output=True, text=True, timeout=10)
        assert asked.stdout.strip() in (kind, "file")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["coprocessor"] == scripts["coproc"]
