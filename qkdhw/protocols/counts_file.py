"""Counts files: the statistics of a block as JSON, and the key length that a proof gives for them.

The format is documented in docs/reference/counts-file.md. Unknown fields and wrong types are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from qkdhw.errors import ConfigurationError
from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.protocols.registry import load_proof, proof_options
from qkdhw.protocols.tomamichel2012 import tomamichel_length

SIZE_LIMIT_BYTES = 1 << 20

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)]
Values = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
Epsilon = Annotated[float, Field(ge=1e-100, lt=1.0)]


class _CountsFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    leak_bits: float = Field(ge=0.0)
    eps_sec: Epsilon = 1e-9
    eps_cor: Epsilon = 1e-15


class DecoyCountsFile(_CountsFile):
    """Counts of a decoy-state block; the fields are those of DecoyCounts."""

    protocol: Literal["decoy-bb84"]
    mean_photon_number: Values
    intensity_probability: Values
    n_key: Counts
    n_test: Counts
    m_test: Counts
    m_key: Counts | None = None

    def decoy_counts(self) -> DecoyCounts:
        """Return the counts as proofs take them."""
        return DecoyCounts(
            mean_photon_number=self.mean_photon_number,
            intensity_probability=self.intensity_probability,
            n_key=self.n_key,
            n_test=self.n_test,
            m_test=self.m_test,
            m_key=self.m_key,
            leak_bits=self.leak_bits,
        )


class SinglePhotonCountsFile(_CountsFile):
    """Counts of a single-photon or entanglement-based block: n key bits, k test bits, threshold q_tol, quality q."""

    protocol: Literal["single-photon"]
    n: int = Field(gt=0, le=1 << 53)
    k: int = Field(gt=0, le=1 << 53)
    q_tol: float = Field(ge=0.0, le=0.5)
    q: float = Field(default=1.0, ge=0.0, le=1.0)


CountsFile = DecoyCountsFile | SinglePhotonCountsFile
_ADAPTER: TypeAdapter[CountsFile] = TypeAdapter(Annotated[CountsFile, Field(discriminator="protocol")])


def read_counts_file(path: Path) -> CountsFile:
    """Read and check a counts file.

    Args:
        path: A JSON file of at most SIZE_LIMIT_BYTES.

    Raises:
        ConfigurationError: The file cannot be read or does not follow the format.
    """
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"counts file {path} cannot be read: {error.strerror}", remedy="Give the path of a readable JSON file."
        ) from error
    if len(text) > SIZE_LIMIT_BYTES:
        raise ConfigurationError(
            f"counts file {path} is larger than {SIZE_LIMIT_BYTES} bytes", remedy="Give a counts file, not raw data."
        )
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise ConfigurationError(
            f"counts file {path} is wrong at {where}: {first['msg']}",
            remedy="Correct the file; docs/reference/counts-file.md describes each field.",
        ) from error


def key_length_of_file(
    file: CountsFile,
    *,
    proof: str = "rigorous",
    eps_sec: float | None = None,
    eps_cor: float | None = None,
    clip: bool = False,
) -> KeyLength:
    """Compute the key length of a counts file.

    Args:
        file: The counts.
        proof: Name of the proof.
        eps_sec: Instead of the file's, 0..1.
        eps_cor: Instead of the file's, 0..1.
        clip: Floor lower count bounds at 0; only for proofs that take this option.

    Raises:
        ConfigurationError: Unknown proof, an option it does not take, or counts that it is not made for.
    """
    function = load_proof(proof)
    eps_sec = file.eps_sec if eps_sec is None else eps_sec
    eps_cor = file.eps_cor if eps_cor is None else eps_cor
    options: dict[str, bool] = {}
    if clip:
        if "clip" not in proof_options(function):
            raise ConfigurationError(
                f"proof {proof} takes no option clip", remedy="Leave clip out, or use proof lim2014."
            )
        options["clip"] = True
    if isinstance(file, DecoyCountsFile):
        return function(file.decoy_counts(), eps_sec=eps_sec, eps_cor=eps_cor, **options)
    if proof != "tomamichel2012":
        raise ConfigurationError(
            f"proof {proof} needs decoy-state counts; the file holds single-photon counts",
            remedy="Use proof tomamichel2012 for this file.",
        )
    return tomamichel_length(file.n, file.k, file.q_tol, file.leak_bits, eps_sec, eps_cor, file.q)
