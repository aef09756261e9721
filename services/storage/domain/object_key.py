"""Which object names may be used. A name that passes is safe as a path in any object store."""

import re

from shared.problems import Rejected

MAX_KEY_BYTES = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_object_key(key: str) -> str:
    """The key itself.

    Raises:
        Rejected: `invalid_object_key` for a key that is empty, absolute, longer than 1024 bytes, not Unicode text,
            has a control character or a backslash, or a part that is empty, `.` or `..`.
    """
    fault = _fault_of(key)
    if fault is not None:
        raise Rejected("invalid_object_key", f"the object key {fault}", object_key=ascii(key)[:200])
    return key


def _fault_of(key: str) -> str | None:
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "is not Unicode text"
    faults = (
        (not key, "is empty"),
        (size_bytes > MAX_KEY_BYTES, f"is longer than {MAX_KEY_BYTES} bytes"),
        (_CONTROL.search(key) is not None, "has a control character in it"),
        ("\\" in key, "has a backslash in it"),
        (key.startswith("/"), "is absolute; leave the leading / away"),
        (any(part in {"", ".", ".."} for part in key.split("/")), "has an empty part, `.` or `..` in it"),
    )
    return next((words for is_so, words in faults if is_so), None)


def check_sha256(digest: str) -> str:
    """The digest in lower case.

    Raises:
        Rejected: `validation_error` when it is not 64 hexadecimal digits.
    """
    lowered = digest.strip().lower()
    if _SHA256.fullmatch(lowered) is None:
        raise Rejected("validation_error", "a SHA-256 is 64 hexadecimal digits", digest=ascii(digest)[:100])
    return lowered
