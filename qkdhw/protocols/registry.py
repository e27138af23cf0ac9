"""Key-length proofs by name, from the entry-point group qkdhw.protocols."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from typing import cast

from qkdhw.errors import ConfigurationError
from qkdhw.interfaces import KeyLengthProof

GROUP = "qkdhw.protocols"


def proof_names() -> tuple[str, ...]:
    """Return the names of all installed proofs, sorted."""
    return tuple(sorted({entry_point.name for entry_point in entry_points(group=GROUP)}))


def load_proof(name: str) -> KeyLengthProof:
    """Load a proof.

    Args:
        name: Such as "rigorous", "lim2014", "rusca2018" or "tomamichel2012".

    Raises:
        ConfigurationError: No proof has this name.
    """
    for entry_point in entry_points(group=GROUP):
        if entry_point.name == name:
            return cast("KeyLengthProof", entry_point.load())
    known = ", ".join(proof_names())
    raise ConfigurationError(
        f"there is no proof {name!r}",
        remedy=f"Choose one of: {known}." if known else "Install the package, so that its proofs are known.",
    )


def proof_options(proof: KeyLengthProof) -> frozenset[str]:
    """Return the names of the options that a proof takes beyond counts and epsilons."""
    names = inspect.signature(proof).parameters
    return frozenset(names) - {"counts", "eps_sec", "eps_cor"}
