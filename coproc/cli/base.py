"""What all commands share: failures as one sentence on standard error, and how numbers are written."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from coproc.errors import CoprocError
from storage_tier.errors import TierError

# What users are told to type. Not `coproc`, though that is installed too: bash and zsh have a reserved word of this
# name (a command beside the shell), so at their prompts `coproc train` starts something else.
PROGRAM = "coprocessor"

TOKEN_VARIABLE = "COPROC_TOKEN"
ADDRESS_VARIABLE = "COPROC_ADDRESS"
DEBUG_VARIABLE = "COPROC_DEBUG"

P = ParamSpec("P")
R = TypeVar("R")


def in_sentences(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose failures are a sentence and exit status 1; with `--debug` they are tracebacks."""
    import typer

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            say_error("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Whoever read the output has gone; what Python flushes at its end must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (CoprocError, TierError) as error:
            if debugging():
                raise
            say_error(str(error))
            raise typer.Exit(1) from None
        except (OSError, ImportError) as error:
            if debugging():
                raise
            say_error(f"{sentence(error)}; `--debug` shows where")
            raise typer.Exit(1) from None

    return run


def sentence(error: Exception) -> str:
    """What went wrong, without the number that the system has for it."""
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.strerror:
        where = " -> ".join(
            os.fsdecode(each) for each in (error.filename, error.filename2) if isinstance(each, (str, bytes))
        )
        return f"{where}: {error.strerror}" if where else error.strerror
    return str(error)


def debugging() -> bool:
    """Whether `--debug` was given, or COPROC_DEBUG is set."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def say_error(sentence: str) -> None:
    """One line on standard error."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def warn(sentence: str) -> None:
    """One line on standard error about what works, but not well."""
    print(f"warning: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def usage_error(sentence: str) -> NoReturn:
    """Refuse a command line; exit status 2."""
    import typer

    raise typer.BadParameter(sentence)


def require_address(address: str) -> None:
    """A usage error unless `address` names servers; they need not run."""
    from storage_tier.wire import parse_address

    try:
        parse_address(address)
    except TierError as error:
        usage_error(str(error))


def token_from_environment() -> str | None:
    """The token of a cluster, kept out of command lines, which everybody on a host can read."""
    return os.environ.get(TOKEN_VARIABLE) or None


def amount(count: float) -> str:
    """A large number as people read it: 23,400."""
    return f"{count:,.0f}"


def size(count_bytes: float) -> str:
    """Bytes as people read them: 57.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_bytes < 1000:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.1f} TB"


def parse_size(text: str) -> int:
    """Bytes from '512m', '4g' or a plain number; a usage error otherwise."""
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    lowered = text.strip().lower().removesuffix("b")
    factor = factors.get(lowered[-1:], 1)
    number = lowered[:-1] if factor > 1 else lowered
    try:
        count = float(number) * factor
    except ValueError:
        count = 0.0
    if not count >= 1 or count == float("inf"):
        usage_error(f"a size looks like 512m, 4g or 1000000, not {text!r}")
    return int(count)
