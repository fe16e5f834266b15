"""Folders in which each file holds one kind of something: an optimizer, a compression. A new one is a new file."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from coproc.errors import ConfigError

T = TypeVar("T")


def names_beside(file: str, other_files: Collection[str]) -> list[str]:
    """Names of the modules in the folder of `file`, sorted; but for those files. Imports none."""
    folder = str(Path(file).parent)
    return sorted(entry.name for entry in pkgutil.iter_modules([folder]) if entry.name not in other_files)


def module_beside(base: str, kind: str, name: str, names: Sequence[str]) -> Any:
    """The module `name` in the folder of the module `base`.

    Args:
        kind: what its files are, for who asks for another one.

    Raises:
        ConfigError: it is none of `names`.
    """
    if name not in names:
        raise ConfigError(f"there is no {kind} {name!r}; the {kind}s are {', '.join(names)}")
    return importlib.import_module(f"{base.rpartition('.')[0]}.{name}")


def not_installed(packages: Iterable[str]) -> list[str]:
    """Those of these packages that cannot be imported here. Imports none."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def one_in_each_file(base: type[T], other_files: Collection[str]) -> dict[str, type[T]]:
    """Name -> class of every file beside that of `base`, which it is a subclass of; imports them all.

    Args:
        other_files: names of files in the folder that hold none.

    Raises:
        TypeError: a file holds none or several, or one that is not called as the file.
    """
    found: dict[str, type[T]] = {}
    package, home = base.__module__.rpartition(".")[0], importlib.import_module(base.__module__).__file__
    assert home is not None
    for entry in pkgutil.iter_modules([str(Path(home).parent)]):
        if entry.name in other_files:
            continue
        module = importlib.import_module(f"{package}.{entry.name}")
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        ]
        if len(classes) != 1 or getattr(classes[0], "name", None) != entry.name:
            raise TypeError(
                f"{module.__file__} must define one {base.__name__} whose name is {entry.name!r}, "
                f"and defines {[(c.__name__, getattr(c, 'name', None)) for c in classes]}"
            )
        found[entry.name] = classes[0]
    return found
