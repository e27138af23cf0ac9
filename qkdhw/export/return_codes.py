"""What a PKCS#11 return value means for the user: python-pkcs11's exceptions to HsmError with a remedy.

Source: OASIS PKCS #11 Specification Version 3.1, section 5.1 (function return values).
"""

from __future__ import annotations

import re

from qkdhw.errors import HsmError

_REMEDIES = {
    "CKR_PIN_INCORRECT": "Check the PIN by hand before the next try: some tokens lock after three wrong ones.",
    "CKR_PIN_LEN_RANGE": "Check the PIN by hand before the next try: its length is not allowed.",
    "CKR_PIN_LOCKED": "The security officer must set a new user PIN; no program can unlock it.",
    "CKR_PIN_EXPIRED": "Set a new user PIN with the vendor's tool.",
    "CKR_USER_PIN_NOT_INITIALIZED": "The security officer must set a user PIN first.",
    "CKR_USER_ALREADY_LOGGED_IN": "This process has the token open already: use that one, or close it first.",
    "CKR_USER_NOT_LOGGED_IN": "Another part of this process logged out: close the token and open it again.",
    "CKR_SESSION_HANDLE_INVALID": "The session is gone: close the token and open it again.",
    "CKR_SESSION_CLOSED": "The session is gone: close the token and open it again.",
    "CKR_SESSION_READ_ONLY": "Open the token for writing.",
    "CKR_SESSION_COUNT": "The token has no session left: close programs that hold it.",
    "CKR_TOKEN_NOT_PRESENT": "Put the token in, then open it again.",
    "CKR_TOKEN_NOT_RECOGNIZED": "Initialise the token with the vendor's tool.",
    "CKR_TOKEN_WRITE_PROTECTED": "The token is write-protected: lift that with the vendor's tool.",
    "CKR_DEVICE_REMOVED": "Put the token in, then open it again.",
    "CKR_DEVICE_ERROR": "Close the token and open it again; if it stays so, restart the token's service.",
    "CKR_DEVICE_MEMORY": "The token is full: destroy keys that are no longer used.",
    "CKR_HOST_MEMORY": "The token or this machine is full: destroy keys that are no longer used.",
    "CKR_GENERAL_ERROR": "Check free disk space and the rights on the token's store, then open the token again.",
    "CKR_FUNCTION_FAILED": "Check free disk space and the rights on the token's store, then open the token again.",
    "CKR_OBJECT_HANDLE_INVALID": "The token lost the object it had just made: check free disk space.",
    "CKR_MECHANISM_INVALID": "The token lacks a mechanism that the import needs: see docs/reference/hsm-export.md.",
}


def return_code(error: Exception) -> str:
    """Return the PKCS#11 name of a python-pkcs11 exception: PinIncorrect is "CKR_PIN_INCORRECT"."""
    name = type(error).__name__.replace("Recognised", "Recognized")
    if name == "PKCS11Error":
        return ""
    return "CKR_" + re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).upper()


def hsm_error(error: Exception, *, what: str) -> HsmError:
    """Return the HsmError for a python-pkcs11 exception.

    Args:
        error: What python-pkcs11 raised.
        what: What was being done and where, such as "log in to token 'site-a'".
    """
    code = return_code(error)
    detail = code or str(error)
    return HsmError(f"cannot {what}: {detail}", return_code=code, remedy=_REMEDIES.get(code, ""))
