"""The key of credentials: made once, private, and what it encrypts is bound to whose it is."""

import os
from pathlib import Path

import pytest

from services.provider_bridge.outbound.credential_key import CredentialKey, OtherKey, Sealed, find_key
from shared.settings import SettingsError

TEXT = "c29tZSB0aGlydHktdHdvIGJ5dGVzIG9mIGEga2V5ISE="


def test_what_is_sealed_opens_as_its_owners_only() -> None:
    key = CredentialKey(TEXT)
    sealed = key.seal("r8_secret", "replicate")
    assert key.open(sealed, "replicate").reveal() == "r8_secret"
    assert b"r8_secret" not in sealed.ciphertext
    for other, owner in ((key, "runpod"), (CredentialKey(TEXT[::-1]), "replicate")):
        with pytest.raises(OtherKey):
            other.open(sealed, owner)
    changed = Sealed(key_id=sealed.key_id, nonce=sealed.nonce, ciphertext=sealed.ciphertext[:-1] + b"\0")
    with pytest.raises(OtherKey):
        key.open(changed, "replicate")


def test_the_same_value_is_never_encrypted_the_same_way_twice() -> None:
    key = CredentialKey(TEXT)
    assert key.seal("r8_secret", "o").ciphertext != key.seal("r8_secret", "o").ciphertext


def test_a_fingerprint_depends_on_the_key_and_tells_secrets_apart() -> None:
    key, other = CredentialKey(TEXT), CredentialKey(TEXT[::-1])
    assert key.fingerprint("a") == CredentialKey(TEXT).fingerprint("a")
    assert len({key.fingerprint("a"), key.fingerprint("b"), other.fingerprint("a")}) == 3
    assert key.key_id != other.key_id


def test_the_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    made, again = find_key({}, tmp_path / "state"), find_key({}, tmp_path / "state")
    path = tmp_path / "state" / "credential.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.key_id == again.key_id
    assert [one.name for one in path.parent.iterdir()] == ["credential.key"]


def test_the_variable_wins_over_the_file(tmp_path: Path) -> None:
    find_key({}, tmp_path)
    by_ours = find_key({"TUNEWRIGHT_CREDENTIAL_KEY": TEXT, "SIMPLETUNER_CREDENTIAL_KEY": "x" * 40}, tmp_path)
    assert by_ours.key_id == CredentialKey(TEXT).key_id
    assert find_key({"SIMPLETUNER_CREDENTIAL_KEY": TEXT}, tmp_path).key_id == by_ours.key_id


def test_a_short_key_and_an_open_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least 32"):
        find_key({"TUNEWRIGHT_CREDENTIAL_KEY": "secret"}, tmp_path)
    find_key({}, tmp_path)
    os.chmod(tmp_path / "credential.key", 0o644)  # noqa: PTH101 - as a careless copy would leave it
    with pytest.raises(SettingsError, match="chmod 600"):
        find_key({}, tmp_path)
