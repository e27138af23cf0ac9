"""Bring a key into a token without its bits ever crossing the PKCS#11 interface in clear.

An RSA pair is made in the token; a random key-encryption key (KEK) goes in under it; each QKD key then goes in under
the KEK. All of these are session objects: they vanish with the session and never touch the token's store.

Source: PKCS #11 v3.1 sections 2.1.8 (RSA OAEP) and 2.14.2 (AES key wrap); RFC 3394 (AES key wrap); RFC 8017 (OAEP).
"""

from __future__ import annotations

from typing import Any

import pkcs11
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.mechanisms import MGF

from qkdhw.errors import HsmError
from qkdhw.secret import SecretBuffer

_SECRET_SESSION_OBJECT = {
    Attribute.TOKEN: False,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}


class KeyWrapping:
    """One RSA pair and one KEK in a session, used for every key of that session.

    Attributes:
        oaep_hash: "sha256" or, where the token knows no better (SoftHSM 2.6.1), "sha1". OAEP does not need a
            collision-free hash, so SHA-1 is no weakness here.
    """

    def __init__(self, session: Any) -> None:
        public, self._private = session.generate_keypair(
            KeyType.RSA,
            2048,
            store=False,
            capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
            private_template=_SECRET_SESSION_OBJECT,
        )
        modulus, exponent = (int.from_bytes(public[a]) for a in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT))
        host_public = RSAPublicNumbers(exponent, modulus).public_key()
        self._kek = SecretBuffer.random(32)
        try:
            self._token_kek, self.oaep_hash = self._send_kek(host_public)
        except BaseException:
            self._kek.close()
            raise

    def _send_kek(self, host_public: RSAPublicKey) -> tuple[Any, str]:
        refusals = []
        for name, hash_, mechanism, mgf in (
            ("sha256", hashes.SHA256(), Mechanism.SHA256, MGF.SHA256),
            ("sha1", hashes.SHA1(), Mechanism.SHA_1, MGF.SHA1),  # noqa: S303
        ):
            # The RSA call takes bytes only. The KEK guards keys on their way in, for this session, and nothing at rest.
            blob = host_public.encrypt(bytes(self._kek), OAEP(MGF1(hash_), hash_, None))
            try:
                kek = self._private.unwrap_key(
                    ObjectClass.SECRET_KEY,
                    KeyType.AES,
                    blob,
                    mechanism=Mechanism.RSA_PKCS_OAEP,
                    mechanism_param=(mechanism, mgf, None),
                    capabilities=MechanismFlag.UNWRAP,
                    template=_SECRET_SESSION_OBJECT,
                )
            except (pkcs11.ArgumentsBad, pkcs11.MechanismInvalid, pkcs11.MechanismParamInvalid) as error:
                refusals.append(f"OAEP {name}: {type(error).__name__}")
            else:
                return kek, name
        raise HsmError(
            f"the token takes no wrapped key ({'; '.join(refusals)})",
            return_code="CKR_MECHANISM_INVALID",
            remedy="Use a token that can C_UnwrapKey with CKM_RSA_PKCS_OAEP.",
        )

    def import_session_key(self, key: SecretBuffer) -> Any:
        """Wrap a key on the host and unwrap it in the token as a session object that can sign and nothing else.

        Args:
            key: A multiple of 8 bytes, 16 or more.

        Returns:
            The python-pkcs11 session key.
        """
        with memoryview(self._kek) as kek, memoryview(key) as view:
            blob = aes_key_wrap(kek, view)
        return self._token_kek.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.GENERIC_SECRET,
            blob,
            mechanism=Mechanism.AES_KEY_WRAP,
            capabilities=MechanismFlag.SIGN,
            template=_SECRET_SESSION_OBJECT,
        )

    def close(self) -> None:
        """Wipe the host's KEK; the session objects go with their session."""
        self._kek.close()
