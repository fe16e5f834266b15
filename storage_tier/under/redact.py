"""What may be said about a mount: its URL and its errors, never its passwords. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
# The only options whose values may appear in a sentence; whatever else is in them is taken for a secret.
HARMLESS = frozenset(
    {
        *("endpoint_url", "region_name", "region", "location", "project", "account_name", "host", "port", "protocol"),
        *("addressing_style", "signature_version", "scheme", "user", "username"),
        *("default_block_size", "retries", "connect_timeout", "read_timeout", "max_concurrency"),
    }
)
_AUTHORITY = re.compile(r"(?<=//)[^/\s]*@")
_QUERY = re.compile(r"\?[^\s]*")
_ASSIGNED = re.compile(
    r"(?i)\b((?:[\w-]*(?:secret|passw(?:or)?d|token|signature|credential)[\w-]*|sig|authorization)[\"']?\s*[=:]\s*)"
    r"(?:(?:bearer|basic)\s+)?[^\s&,;]+"
)
# Shorter ones are replaced only where they stand alone: a password "e" must not eat the sentence.
_SHORT = 4


def safe_url(url: str) -> str:
    """The URL without user, password and query."""
    if _is_only_a_path(url):
        return url
    return _QUERY.sub(f"?{HIDDEN}", _AUTHORITY.sub(f"{HIDDEN}@", url))


class Redactor:
    """Takes what a mount's URL and options keep secret out of any text."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        found = {*_secrets_of_url(url), *_values(options)}
        forms = {form for secret in found for form in (secret, unquote(secret), repr(secret)[1:-1]) if form.strip()}
        longest_first = sorted(forms, key=len, reverse=True)
        patterns = [
            re.escape(form) if len(form) >= _SHORT else rf"(?<!\w){re.escape(form)}(?!\w)" for form in longest_first
        ]
        self._secrets = re.compile("|".join(patterns)) if patterns else None

    def clean(self, text: str, limit_count: int = 300) -> str:
        """The text on one line, secrets hidden, cut at `limit_count` characters."""
        if self._secrets is not None:
            text = self._secrets.sub(HIDDEN, text)
        text = _ASSIGNED.sub(rf"\g<1>{HIDDEN}", _AUTHORITY.sub(f"{HIDDEN}@", text))
        text = " ".join(text.split())
        return text if len(text) <= limit_count else text[: limit_count - 3] + "..."


def _is_only_a_path(url: str) -> bool:
    """There a question mark or an at is only that."""
    return url.startswith(("file:", "local:", "memory:"))


def _secrets_of_url(url: str) -> Iterator[str]:
    if _is_only_a_path(url):
        return
    for found in _AUTHORITY.findall(url):
        _, colon, password = found[:-1].partition(":")
        if colon:
            yield password
    for query in _QUERY.findall(url):
        for pair in query[1:].split("&"):
            yield pair.partition("=")[2]


def _values(found: object, name: str = "") -> Iterator[str]:
    """Each string below an option, but those whose own name says that they are harmless."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _values(value, str(key))
    elif isinstance(found, str):
        if name not in HARMLESS:
            yield found
        else:
            yield from _secrets_of_url(found)
    elif isinstance(found, int) and not isinstance(found, bool):
        if name not in HARMLESS:
            yield str(found)
    elif isinstance(found, bytes):
        yield found.decode(errors="replace")
    elif isinstance(found, Iterable):
        for value in found:
            yield from _values(value, name)
