"""Every error class. Facts are fields; messages say what, where and what to do; no error ever holds key bits.

The class says whose fault it is: a caller's bug is ValueError or TypeError, a unit that answers badly is a
UnitError, a peer that breaks the protocol is a PeerProtocolError. Each room raises only its own family.
"""

from __future__ import annotations


class QkdhwError(Exception):
    """Base of all errors of this package.

    Attributes:
        remedy: One sentence on what the user can do about it, or "".
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy
        if remedy:
            self.add_note(f"remedy: {remedy}")


class ConfigurationError(QkdhwError):
    """A setting, file or option is missing or wrong."""


# --- the byte link ----------------------------------------------------------------------------------------------
class TransportError(QkdhwError):
    """The byte link to a unit failed."""


class TransportTimeoutError(TransportError):
    """Nothing, or not enough, arrived before the deadline."""


class TransportClosedError(TransportError):
    """The other end closed the link, or it was never open."""


# --- the unit ---------------------------------------------------------------------------------------------------
class UnitError(QkdhwError):
    """The unit answered badly."""


class WireFormatError(UnitError):
    """Bytes from a unit do not follow its protocol."""


class CommandRefusedError(UnitError):
    """The unit understood a command and refused it.

    Attributes:
        command: The command as sent.
        code: The unit's own error code, or "".
    """

    def __init__(self, message: str, *, command: str, code: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.command = command
        self.code = code


class UnitStateError(UnitError):
    """The unit is in a state in which this cannot be done."""


class NotSupportedError(UnitError):
    """This instrument cannot do that."""


# --- detection events -------------------------------------------------------------------------------------------
class EventError(QkdhwError):
    """A stream or file of detection events is wrong."""


class EventFormatError(EventError):
    """A file of detection events does not follow its format.

    Attributes:
        offset_bytes: Where in the file, or None if it is not one place.
    """

    def __init__(self, message: str, *, offset_bytes: int | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.offset_bytes = offset_bytes


class EventOverflowError(EventError):
    """Events were lost because a buffer ran over.

    Attributes:
        lost: How many, or -1 if the unit cannot say.
    """

    def __init__(self, message: str, *, lost: int = -1, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.lost = lost


class NonMonotonicTimeError(EventError):
    """Time goes backwards.

    Attributes:
        index: First event that is earlier than the one before it.
    """

    def __init__(self, message: str, *, index: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.index = index


class ClockAlignmentError(EventError):
    """No significant clock alignment between two sites was found, or it was lost."""


# --- post-processing --------------------------------------------------------------------------------------------
class PostprocessingError(QkdhwError):
    """The two-party exchange cannot go on."""


class PeerProtocolError(PostprocessingError):
    """The peer sent something that the protocol does not allow."""


class AuthenticationError(PostprocessingError):
    """A message's tag is wrong, replayed or out of order."""


class AuthenticationKeyExhaustedError(PostprocessingError):
    """No authentication key is left to tag or check a message with."""


class QberTooHighError(PostprocessingError):
    """The error rate is above the limit; no key may be made.

    Attributes:
        qber: Fraction observed.
        limit: Fraction allowed.
    """

    def __init__(self, message: str, *, qber: float, limit: float, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.qber = qber
        self.limit = limit


class ReconciliationError(PostprocessingError):
    """Error correction failed."""


class VerificationError(PostprocessingError):
    """The corrected keys of the two sites differ."""


class MonitorAlarmError(PostprocessingError):
    """An alarm of the detectors' monitors stands: no key is made until it is cleared."""


class KeyLengthZeroError(PostprocessingError):
    """The security proof allows no key from this block."""


# --- key store --------------------------------------------------------------------------------------------------
class KeyStoreError(QkdhwError):
    """The key store failed; nothing was half-written."""


class KeyNotFoundError(KeyStoreError):
    """No key has this key ID.

    Attributes:
        key_id: The key ID asked for.
    """

    def __init__(self, message: str, *, key_id: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.key_id = key_id


class KeyExhaustedError(KeyStoreError):
    """Fewer keys are left than were asked for.

    Attributes:
        asked: How many were asked for.
        available: How many there are.
    """

    def __init__(self, message: str, *, asked: int, available: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.asked = asked
        self.available = available


class KeyAlreadyTakenError(KeyStoreError):
    """The key was delivered, exported or destroyed before; it is never given out again.

    Attributes:
        key_id: The key ID asked for.
        state: The lifecycle state it is in.
    """

    def __init__(self, message: str, *, key_id: str, state: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.key_id = key_id
        self.state = state


class KeyStateError(KeyStoreError):
    """The lifecycle does not allow this transition."""


# --- export, delivery, PKI --------------------------------------------------------------------------------------
class ExportError(QkdhwError):
    """A key could not be handed to an HSM."""


class HsmError(ExportError):
    """The token or its PKCS#11 module answered with an error.

    Attributes:
        return_code: PKCS#11 return value name, such as "CKR_PIN_INCORRECT", or "".
    """

    def __init__(self, message: str, *, return_code: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.return_code = return_code


class KeyConfirmationError(ExportError):
    """Two tokens do not hold the same key."""


class DeliveryError(QkdhwError):
    """A key could not be handed to an application."""


class PkiError(QkdhwError):
    """Identity, certificate or session failed."""


class SessionRefusedError(PkiError):
    """A standard session (TLS, IPsec, WireGuard) was refused; the message says by which check."""
