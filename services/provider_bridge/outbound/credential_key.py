"""The key under which credentials are kept, and what it does to them: AES-256-GCM, bound to whose they are."""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.settings import Secret, SettingsError

VARIABLES = ("TUNEWRIGHT_CREDENTIAL_KEY", "SIMPLETUNER_CREDENTIAL_KEY")
OLDER_VARIABLE = "TUNEWRIGHT_CREDENTIAL_KEYS_BEFORE"
"""Keys of earlier times, with commas, until everything was sealed anew."""
KEY_FILE = "credential.key"
_MIN_CHARS = 32
_NONCE_BYTES = 12


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """An encrypted value. `key_id` tells which key it needs."""

    key_id: str
    nonce: bytes
    ciphertext: bytes


class OtherKey(Exception):  # noqa: N818 - a state of the world, not an error of the caller
    """The value was encrypted under another key than ours, or was changed."""


class CredentialKey:
    """Encrypts, decrypts, and makes fingerprints that tell two secrets apart and nothing else."""

    def __init__(self, text: str, older: "Sequence[CredentialKey]" = ()) -> None:
        """`older` keys still open what was sealed under them."""
        self._cipher = AESGCM(_derived(text, b"encryption"))
        self._marking = _derived(text, b"fingerprints")
        self._older = {key.key_id: key for key in older}
        self.key_id = hashlib.sha256(_derived(text, b"name")).hexdigest()[:8]

    def seal(self, value: str, owner: str) -> Sealed:
        """The value, readable again only as this owner's."""
        nonce = os.urandom(_NONCE_BYTES)
        return Sealed(
            key_id=self.key_id, nonce=nonce, ciphertext=self._cipher.encrypt(nonce, value.encode(), owner.encode())
        )

    def open(self, sealed: Sealed, owner: str) -> Secret:
        """The value again. Raises OtherKey."""
        if (older := self._older.get(sealed.key_id)) is not None:
            return older.open(sealed, owner)
        try:
            return Secret(self._cipher.decrypt(sealed.nonce, sealed.ciphertext, owner.encode()).decode())
        except InvalidTag:
            raise OtherKey from None

    def fingerprint(self, value: str) -> str:
        """12 hex digits: the same for the same secret, of no use to whoever wants to guess it without our key."""
        return hmac.new(self._marking, value.encode(), hashlib.sha256).hexdigest()[:12]


def find_key(environ: Mapping[str, str], state_dir: Path) -> CredentialKey:
    """The key of the environment, else of a file in the state folder that is made once and only we can read.

    Raises SettingsError for a key that is too short, or a key file that others can read.
    """
    before = [word.strip() for word in environ.get(OLDER_VARIABLE, "").split(",") if word.strip()]
    older = [CredentialKey(_long_enough(OLDER_VARIABLE, text)) for text in before]
    for name in VARIABLES:
        if text := environ.get(name, "").strip():
            return CredentialKey(_long_enough(name, text), older)
    return CredentialKey(_kept(state_dir / KEY_FILE), older)


def _long_enough(name: str, text: str) -> str:
    if len(text) < _MIN_CHARS:
        advice = "make one with: openssl rand -base64 32"
        raise SettingsError(f"{name}: a key has at least {_MIN_CHARS} characters; {advice}")
    return text


def _kept(path: Path) -> str:
    """The text of the key file; made whole before it has its name, so nobody ever reads half of one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)  # the first of several bridges wins
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path}: others can read the key of all credentials; run: chmod 600 {path}")
    return path.read_text(encoding="ascii").strip()


def _derived(text: str, purpose: bytes) -> bytes:
    try:
        material = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        material = text.encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"tunewright credentials: " + purpose).derive(material)
