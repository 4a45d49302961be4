"""Which URIs a run may use: the runtime's ``allowedUriPrefixes``, for one namespace.

The operator asks at acceptance, and the trainer again before it opens anything: a configuration that came about in some
other way must not lead out either. Both judge the same text, so a URI is allowed only if everybody who reads it reads
the same place: nothing that one reader would decode, resolve or cut off and another would not. Part of the contract:
imports nothing but the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NAMESPACE_PLACEHOLDER = "{namespace}"
"""Stands for the job's namespace in a prefix."""

_SHOWN = 8
_HUB = "hf://"
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
"""How a slash is written in the revision of a dataset."""
_AMBIGUOUS = re.compile(r"[%\\?#\x00-\x20\x7f]")


def resolve_prefixes(prefixes: Sequence[str], namespace: str) -> list[str]:
    """Those of one namespace. A namespace's name has no character that means anything in a URI."""
    return [prefix.replace(NAMESPACE_PLACEHOLDER, namespace) for prefix in prefixes]


def find_uri_fault(uri: str, prefixes: Sequence[str]) -> str | None:
    """Why ``uri`` must not be used, as the end of a sentence; None: it may be."""
    decoded = _ENCODED_SLASH.sub("/", uri)
    if _AMBIGUOUS.search(decoded) or ".." in re.split("[/@]", decoded):
        return "must not contain '..', spaces, or any of % \\ ? # (but %2F for a slash in a revision)"
    if any(_covers(prefix, uri) for prefix in prefixes):
        return None
    shown = ", ".join(prefixes[:_SHOWN]) + (f" and {len(prefixes) - _SHOWN} more" if len(prefixes) > _SHOWN else "")
    return f"must begin with one of: {shown}" if prefixes else "must not be a URI at all: no prefix is allowed"


def _covers(prefix: str, uri: str) -> bool:
    """Whole segments only: ``s3://b/team`` covers ``s3://b/team/x`` and not ``s3://b/team2``.

    ``@`` begins the revision of a repository; in any other scheme what precedes it would be credentials.
    """
    if prefix.endswith("/"):
        return uri.startswith(prefix) or uri == prefix[:-1]
    boundaries = "/@" if prefix.startswith(_HUB) else "/"
    return uri == prefix or (uri.startswith(prefix) and uri[len(prefix)] in boundaries)
