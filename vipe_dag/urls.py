"""What a URL may carry, what is said of it, how it is opened. Credentials come from the environment: none is kept, shown or logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast
from urllib.parse import parse_qsl

from vipe_dag.errors import VipeDagError

_WEB = ("http", "https")
_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d{1,5})?")
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*:(?:/|:))")
"""Between the parts of a URL that goes through several file systems: zip://a.mp4::https://example.org/clips.zip."""
_CREDENTIAL_NAME = re.compile(
    r"^x-(?:amz|goog|ms)-|(?:^|[-_.])(?:sig|key|auth|pwd|pass|jwt)(?:$|[-_.])|token|secret|passw|signature|credential|authoriz|apikey|access",
    re.IGNORECASE,
)
"""Query parameters of presigned URLs (S3, CloudFront, Google, Azure SAS) and of common web services."""
_RANDOM_VALUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9+/=_.~-]{24,}")
"""A value that nobody types: taken for a credential whatever its name."""
_S3_OPTIONS = {"max_concurrency": 1}
"""Otherwise s3fs asks for the size of an object before it reads it, to fetch large ones in parts at once: ours are shards of some MB."""
_IN_TEXT = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s'\")]+")


def public(url: str) -> str:
    """For messages and records: a path as it is, a URL without user name, password, and query (of an object: unless that is harmless)."""
    return "::".join(_public_part(part) for part in _CHAIN.split(url)) if "://" in url else url


def redacted(text: str) -> str:
    """What a library said, without user names, passwords and queries of the URLs in it."""
    return _IN_TEXT.sub("", text)


def refuse_credentials(url: str, error: type[VipeDagError]) -> None:
    """Raises `error` when a URL carries a user name, a password or a signature: it would be kept with the results and in Dagster's book."""
    if "://" not in url:
        return
    for part in _CHAIN.split(url):
        _, separator, rest = part.partition("://")
        if separator and (_user_end(rest) or _signed(rest)):
            raise error(
                f"{public(url)}: the URL carries credentials, which would be kept with the results; give them by the environment "
                "(AWS_ACCESS_KEY_ID and the like, a profile, an instance role; FSSPEC_HTTPS for a web server), or download the file"
            )


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system behind a URL and the path in it. It remembers no listings: others write there too.

    Raises what fsspec raises: ValueError for an unknown protocol, ImportError for one whose package is not installed.
    """
    import fsspec

    return cast(tuple[Any, str], fsspec.url_to_fs(url, **open_options(url, options)))


def open_options(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What fsspec is told besides `options`."""
    return {"use_listings_cache": False, **(_S3_OPTIONS if url.startswith("s3://") else {}), **options}


def version_of(facts: Mapping[str, Any]) -> str:
    """What changes with the content of an object, of what fsspec says of it: the service's etag, else the time of writing and the inode."""
    for name in ("ETag", "etag", "md5Hash", "content_md5"):
        if facts.get(name):
            return str(facts[name]).strip('"')
    times = (facts[name] for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created") if facts.get(name))
    written = next(times, "")
    return f"{written.isoformat() if isinstance(written, datetime) else written}-{facts.get('ino', '')}"


def _public_part(part: str) -> str:
    scheme, separator, rest = part.partition("://")
    if not separator:
        return part
    signed = _signed(rest)
    rest = rest[_user_end(rest) :]
    if scheme in _WEB or signed:
        rest = re.split(r"[?#]", rest)[0]
    return f"{scheme}://{rest}"


def _user_end(rest: str) -> int:
    """Where the host begins in what follows `://`; 0 without a user. A password may hold an unquoted slash: then its host is no port."""
    authority = re.split(r"[/?#]", rest)[0]
    if "@" in authority or ("@" in rest and not _PORT.fullmatch(authority)):
        return (authority if "@" in authority else rest).rindex("@") + 1
    return 0


def _signed(rest: str) -> bool:
    query = rest.partition("?")[2].partition("#")[0].replace("+", "%2B")  # base64 has it; a blank is nothing to look for
    pairs = parse_qsl(query, keep_blank_values=True)
    return any(_CREDENTIAL_NAME.search(name) or _RANDOM_VALUE.fullmatch(value) for name, value in pairs)
