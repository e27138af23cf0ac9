"""QKD keys in a PKCS#11 token: import by wrapping, MAC and derivation inside the token, list, destroy.

One Pkcs11Token is one logged-in session. Closing it logs the whole process out of that token (PKCS#11 keeps the login
per process and token), so a process opens a token once.

Source: OASIS PKCS #11 Specification Version 3.1; NIST SP 800-108r1 section 4.1 (KDF in counter mode).
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from qkdhw.errors import HsmError
from qkdhw.export.modules import MODULE_LOCK, loaded_module, softhsm_free_bytes
from qkdhw.export.return_codes import hsm_error
from qkdhw.secret import SecretBuffer

if TYPE_CHECKING:
    from qkdhw.export.key_wrapping import KeyWrapping

Pin = SecretBuffer | Callable[[], str]

_IMPORT_CHECK_LABEL = b"qkdhw-import|1|"
_MIN_KEY_BYTES = 32  # SoftHSM refuses shorter ones for HMAC-SHA256 (CKR_KEY_SIZE_RANGE)
_DERIVED_BYTES = 32


@dataclass(frozen=True, slots=True)
class ImportedKey:
    """A key that is in a token.

    Attributes:
        key_id: UUID text; its 16 bytes are the CKA_ID.
        label: CKA_LABEL, unique because it ends in the key ID.
        token_label: Label of the token.
        token_serial: Serial number of the token.
    """

    key_id: str
    label: str
    token_label: str
    token_serial: str


class Pkcs11Token:
    """One token, opened for writing and logged in. Use `Pkcs11Token.open`; it is a context manager.

    Calls from several threads wait for one another; a forked child may not use its parent's token.

    Attributes:
        label: Token label.
        serial: Token serial number.
        model: Model name as the token gives it.
    """

    def __init__(self, token: Any, session: Any, resources: ExitStack, min_free_bytes: int) -> None:
        self.label: str = token.label
        self.serial: str = token.serial.decode("ascii", "replace")
        self.model: str = token.model
        self._session = session
        self._resources = resources
        self._min_free_bytes = min_free_bytes
        self._wrapping: KeyWrapping | None = None
        self._stored_ids: set[bytes] | None = None
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def open(
        cls, module_path: str | os.PathLike[str], token_label: str, pin: Pin, *, min_free_bytes: int = 1 << 20
    ) -> Self:
        """Load the module, find the token by label and log in, with exactly one attempt.

        Args:
            module_path: PKCS#11 module (shared library).
            token_label: Label of the token; slot numbers move, labels stay.
            pin: User PIN in UTF-8, or a function that returns it. python-pkcs11 makes a str of it that cannot be
                wiped.
            min_free_bytes: Refuse to import when less is free where the token keeps its objects, if that is known.

        Raises:
            ConfigurationError: python-pkcs11 is not installed.
            HsmError: Module or token missing, PIN wrong or locked, or the token already open in this process.
        """
        with ExitStack() as resources:
            library = resources.enter_context(loaded_module(module_path))
            import pkcs11

            with MODULE_LOCK:
                try:
                    token = _find_token(library, token_label)
                    if token.flags & pkcs11.TokenFlag.USER_PIN_LOCKED:
                        raise pkcs11.PinLocked
                    session = token.open(rw=True, user_pin=_read_pin(pin))
                except pkcs11.PKCS11Error as error:
                    raise hsm_error(error, what=f"log in to token {token_label!r}") from None
            return cls(token, session, resources.pop_all(), min_free_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out and close; closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        if self._wrapping is not None:
            self._wrapping.close()
        if os.getpid() != self._process:
            return
        import pkcs11

        with self._resources, MODULE_LOCK:
            try:
                self._session.close()
            except pkcs11.PKCS11Error as error:
                raise hsm_error(error, what=f"close token {self.label!r}") from error

    @contextmanager
    def _calls(self, what: str) -> Iterator[None]:
        import pkcs11

        if self._closed or os.getpid() != self._process:
            where = "is closed" if self._closed else "belongs to the parent process"
            remedy = "Open the token in this process."
            raise HsmError(f"cannot {what}: token {self.label!r} {where}", remedy=remedy)
        with MODULE_LOCK:
            try:
                yield
            except pkcs11.PKCS11Error as error:
                raise hsm_error(error, what=f"{what} on token {self.label!r}") from error

    def import_key(self, key_id: str, label: str, key: SecretBuffer) -> ImportedKey:
        """Bring a key into the token, wrapped, and prove that what is there is that key and cannot be read.

        Order: unwrap as a session object, read its attributes back, compare an HMAC with the host's, copy to the
        token's store, read back again. Only a key that passed ever reaches the store.

        Args:
            key_id: UUID text.
            label: What the key is for, such as the link's name; CKA_LABEL is "qkd:<label>:<key_id>".
            key: At least 32 bytes, a multiple of 8. The caller keeps and closes it.

        Raises:
            ValueError: The key ID is no UUID, or the key's length does not fit.
            HsmError: The token refused, already holds this key ID, is full, or did not store what was asked.
        """
        identifier = UUID(key_id)
        if len(key) < _MIN_KEY_BYTES or len(key) % 8:
            message = (
                f"key of {len(key)} bytes: need at least {_MIN_KEY_BYTES} (HMAC-SHA256) and a multiple of 8 (RFC 3394)"
            )
            raise ValueError(message)
        self._check_space()
        with self._calls(f"import key {key_id}"):
            self._refuse_duplicate(identifier)
            session_key = self._prepare_wrapping().import_session_key(key)
            try:
                self._check_attributes(session_key, key_id, on_token=False)
                self._check_value(session_key, key_id, import_check(key_id, key))
                name = f"qkd:{label}:{identifier}"
                self._store(session_key, identifier, name)
            finally:
                session_key.destroy()
        return ImportedKey(str(identifier), name, self.label, self.serial)

    def mac(self, key_id: str, data: bytes) -> bytes:
        """Return HMAC-SHA256 over `data`, computed in the token.

        Raises:
            HsmError: The token does not hold the key, or failed.
        """
        with self._calls(f"compute a MAC with key {key_id}"):
            return self._sign(self._get(key_id), data)

    def derive_session_secret(self, key_id: str, label: bytes, context: bytes) -> SecretBuffer:
        """Derive 32 bytes for a session; the key itself stays in the token.

        KDF in counter mode with HMAC-SHA256, one block: HMAC(K, 1 | label | 0x00 | context | 256), with 32-bit
        counter and length. The module hands the result over as a bytes object, which cannot be wiped.

        Args:
            key_id: UUID text.
            label: What the secret is for, without zero bytes.
            context: What the secret is bound to.

        Raises:
            ValueError: The label holds a zero byte.
            HsmError: The token does not hold the key, or failed.

        Source: NIST SP 800-108r1, section 4.1.
        """
        if not label or 0 in label:
            message = "KDF label is empty or holds a zero byte"
            raise ValueError(message)
        block = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", 8 * _DERIVED_BYTES)
        secret = SecretBuffer(_DERIVED_BYTES)
        try:
            with self._calls(f"derive a secret from key {key_id}"):
                secret.copy_from(self._sign(self._get(key_id), block))
        except BaseException:
            secret.close()
            raise
        return secret

    def list_keys(self) -> list[ImportedKey]:
        """Return the secret keys in the token's store whose ID is a UUID, in the token's order.

        An import that was cut off inside the token may leave an object without an ID; it is not listed.
        """
        with self._calls("list keys"):
            from pkcs11 import Attribute, ObjectClass

            wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True}
            keys = []
            for item in list(self._session.get_objects(wanted)):
                values = item.get_attributes([Attribute.ID, Attribute.LABEL])
                if len(values.get(Attribute.ID, b"")) == 16:
                    key_id = str(UUID(bytes=values[Attribute.ID]))
                    keys.append(ImportedKey(key_id, values.get(Attribute.LABEL, ""), self.label, self.serial))
            return keys

    def check_import(self, key_id: str, check: bytes) -> str:
        """Say what the token holds under a key ID.

        Args:
            key_id: UUID text.
            check: What `import_check` gave for the key.

        Returns:
            "good", "absent", "other key" (the MAC differs) or "weak" (it could be read or taken out).
        """
        with self._calls(f"check key {key_id}"):
            found = self._find(UUID(key_id))
            if not found:
                return "absent"
            if not hmac.compare_digest(self._sign(found[0], _check_message(key_id)), check):
                return "other key"
            return "weak" if _weak_attributes(found[0], on_token=True) else "good"

    def destroy(self, key_id: str) -> None:
        """Destroy a key in the token.

        Raises:
            HsmError: The token does not hold the key, or refused.
        """
        with self._calls(f"destroy key {key_id}"):
            self._get(key_id).destroy()
            self._stored_ids = None

    def free_bytes(self) -> int | None:
        """Return the free bytes where the token keeps its objects, or None if the token does not tell."""
        return softhsm_free_bytes() if self.model.startswith("SoftHSM") else None

    # --- inside one call, under the lock -----------------------------------------------------------------------
    def _check_space(self) -> None:
        free = self.free_bytes()
        if free is not None and free < self._min_free_bytes:
            message = f"the disk of token {self.label!r} is full: {free} bytes free, {self._min_free_bytes} needed"
            raise HsmError(message, remedy="Free disk space; SoftHSM itself would not report the loss of a key.")

    def _refuse_duplicate(self, identifier: UUID) -> None:
        from pkcs11 import Attribute

        if self._stored_ids is None:  # once a session: a search costs time for every object in the token
            stored = list(self._session.get_objects({Attribute.TOKEN: True}))
            self._stored_ids = {item.get_attributes([Attribute.ID]).get(Attribute.ID, b"") for item in stored}
        if identifier.bytes in self._stored_ids:
            raise HsmError(
                f"token {self.label!r} already holds an object with the ID of key {identifier}",
                remedy="A key is exported once; `qkdhw hsm keys` shows what is there.",
            )

    def _store(self, session_key: Any, identifier: UUID, name: str) -> None:
        from pkcs11 import Attribute

        wanted = {Attribute.TOKEN: True, Attribute.ID: identifier.bytes, Attribute.LABEL: name}
        stored = session_key.copy(wanted)
        if self._stored_ids is not None:
            self._stored_ids.add(identifier.bytes)
        if stored.get_attributes([*wanted]) != wanted:
            raise HsmError(
                f"token {self.label!r} answered CKR_OK but did not store key {identifier} as asked",
                remedy="Check free disk space and the rights on the token's store.",
            )
        self._check_attributes(stored, str(identifier), on_token=True)

    def _prepare_wrapping(self) -> KeyWrapping:
        if self._wrapping is None:
            from qkdhw.export.key_wrapping import KeyWrapping

            self._wrapping = KeyWrapping(self._session)
        return self._wrapping

    def _find(self, identifier: UUID) -> list[Any]:
        from pkcs11 import Attribute

        return list(self._session.get_objects({Attribute.ID: identifier.bytes, Attribute.TOKEN: True}))

    def _get(self, key_id: str) -> Any:
        found = self._find(UUID(key_id))
        if len(found) != 1:
            remedy = "`qkdhw hsm keys` shows what is there."
            raise HsmError(f"token {self.label!r} holds {len(found)} keys with ID {key_id}", remedy=remedy)
        return found[0]

    @staticmethod
    def _sign(key: Any, data: bytes) -> bytes:
        from pkcs11 import Mechanism

        return bytes(key.sign(data, mechanism=Mechanism.SHA256_HMAC))

    def _check_attributes(self, key: Any, key_id: str, *, on_token: bool) -> None:
        weak = _weak_attributes(key, on_token=on_token)
        if weak:
            raise HsmError(
                f"token {self.label!r} does not protect key {key_id}: {', '.join(weak)}",
                remedy="Do not use this token for keys: it accepted the attributes and dropped them.",
            )

    def _check_value(self, key: Any, key_id: str, check: bytes) -> None:
        if not hmac.compare_digest(self._sign(key, _check_message(key_id)), check):
            remedy = "The token or its module is broken; the key was not stored."
            raise HsmError(f"token {self.label!r} computes with another key than {key_id}", remedy=remedy)


def import_check(key_id: str, key: SecretBuffer) -> bytes:
    """Return HMAC-SHA256(key, "qkdhw-import|1|" and the ID's 16 bytes), computed on the host.

    It tells a holder of the key from others and is kept in the export journal. It is computationally, not
    information-theoretically, hiding: keys in a token serve MAC and KDF, never a one-time pad.
    """
    with memoryview(key) as view:
        return hmac.digest(view, _check_message(key_id), "sha256")


def _check_message(key_id: str) -> bytes:
    return _IMPORT_CHECK_LABEL + UUID(key_id).bytes


def _weak_attributes(key: Any, *, on_token: bool) -> list[str]:
    """Return the attributes that are not as they must be, read back from the token; CKR_OK proves nothing."""
    from pkcs11 import Attribute

    wanted = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.PRIVATE: True,
        Attribute.SIGN: True,
        Attribute.TOKEN: on_token,
    }
    values = key.get_attributes([*wanted, Attribute.VALUE])
    weak = [f"CKA_{a.name} is {values.get(a)}" for a, value in wanted.items() if values.get(a) is not value]
    if Attribute.VALUE in values:
        weak.append("CKA_VALUE can be read")
    return weak


def _read_pin(pin: Pin) -> str:
    if isinstance(pin, SecretBuffer):
        with memoryview(pin) as view:
            return str(view, "utf-8")
    return pin()


def _find_token(library: Any, token_label: str) -> Any:
    tokens = list(library.get_tokens())
    found = [token for token in tokens if token.label == token_label]
    if len(found) != 1:
        labels = ", ".join(repr(token.label) for token in tokens if token.label) or "none"
        count = "no token" if not found else f"{len(found)} tokens"
        remedy = f"Tokens found: {labels}. SoftHSM reads its configuration from SOFTHSM2_CONF."
        raise HsmError(f"{count} with label {token_label!r}", return_code="CKR_TOKEN_NOT_PRESENT", remedy=remedy)
    return found[0]
