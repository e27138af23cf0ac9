"""Counts files and the command that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qkdhw.cli.link import app
from qkdhw.errors import ConfigurationError
from qkdhw.protocols.counts_file import SIZE_LIMIT_BYTES, key_length_of_file, read_counts_file

LIM_1: dict[str, Any] = {
    "protocol": "decoy-bb84",
    "mean_photon_number": [0.5, 0.1, 2e-4],
    "intensity_probability": [0.6, 0.3, 0.1],
    "n_key": [8000000, 900000, 4000],
    "n_test": [800000, 90000, 400],
    "m_test": [12000, 1700, 150],
    "leak_bits": 1160000,
}
TOM_1: dict[str, Any] = {
    "protocol": "single-photon",
    "n": 1000000,
    "k": 25000,
    "q_tol": 0.03,
    "leak_bits": 450000,
    "eps_sec": 1e-10,
}


def _write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "COUNTS.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["keylength", *map(str, arguments)])


def test_default_proof_is_rigorous(tmp_path: Path) -> None:
    result = _run(_write(tmp_path, LIM_1), "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["proof"] == "rigorous"
    assert answer["rigorous"] is True
    assert answer["length_bits"] > 3_500_000
    assert {"s_key_1", "s_test_1", "v_test_1", "phase_error_rate", "leak_bits"} <= answer["bounds"].keys()
    assert result.stderr == ""


def test_printed_formula_is_announced_as_not_rigorous(tmp_path: Path) -> None:
    path = _write(tmp_path, LIM_1)
    plain, clipped = _run(path, "--proof", "lim2014", "--json"), _run(path, "--proof", "lim2014", "--clip", "--json")
    assert json.loads(plain.stdout)["length_bits"] == 3_184_401
    assert json.loads(clipped.stdout)["length_bits"] == 3_479_031
    assert "NOT RIGOROUS" in plain.stderr


def test_table_shows_bounds_reason_and_assumptions(tmp_path: Path) -> None:
    result = _run(_write(tmp_path, LIM_1 | {"leak_bits": 1e9}))
    assert result.exit_code == 0
    for text in ("phase_error_rate", "length_bits", "No key: leakage", "Taken for granted"):
        assert text in result.stdout


def test_epsilons_come_from_the_file_unless_given(tmp_path: Path) -> None:
    path = _write(tmp_path, LIM_1 | {"eps_sec": 1e-12, "eps_cor": 1e-18})
    assert json.loads(_run(path, "--json").stdout)["eps_sec"] == 1e-12
    given = json.loads(_run(path, "--json", "--eps-sec", "1e-9", "--eps-cor", "1e-15").stdout)
    assert (given["eps_sec"], given["eps_cor"]) == (1e-9, 1e-15)


def test_single_photon_file(tmp_path: Path) -> None:
    path = _write(tmp_path, TOM_1)
    assert json.loads(_run(path, "--proof", "tomamichel2012", "--json").stdout)["length_bits"] == 215_971
    with pytest.raises(ConfigurationError, match="needs decoy-state counts"):
        key_length_of_file(read_counts_file(path))


def test_option_that_a_proof_does_not_take(tmp_path: Path) -> None:
    file = read_counts_file(_write(tmp_path, LIM_1))
    with pytest.raises(ConfigurationError, match="takes no option clip"):
        key_length_of_file(file, clip=True)


def test_unknown_proof(tmp_path: Path) -> None:
    result = _run(_write(tmp_path, LIM_1), "--proof", "shor2000")
    assert isinstance(result.exception, ConfigurationError)
    assert "rigorous" in result.exception.remedy
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("not json", "top level"),
        ("", "top level"),
        ([1, 2], "top level"),
        ({**LIM_1, "protocol": "e91"}, "top level"),
        ({k: v for k, v in LIM_1.items() if k != "n_key"}, "n_key"),
        (LIM_1 | {"n_keys": [1, 2, 3]}, "n_keys"),
        (LIM_1 | {"n_key": ["8000000", 900000, 4000]}, "n_key.0"),
        (LIM_1 | {"n_key": [8000000.5, 900000, 4000]}, "n_key.0"),
        (LIM_1 | {"m_test": [-1, 0, 0]}, "m_test.0"),
        (LIM_1 | {"eps_sec": 0}, "eps_sec"),
        (LIM_1 | {"eps_cor": 2}, "eps_cor"),
        (json.dumps(LIM_1).replace("1160000", "NaN"), "leak_bits"),
        (TOM_1 | {"q_tol": 0.7}, "q_tol"),
    ],
)
def test_bad_file_is_refused_with_its_place(tmp_path: Path, content: object, where: str) -> None:
    with pytest.raises(ConfigurationError, match=where.replace(".", r"\.")) as caught:
        read_counts_file(_write(tmp_path, content))
    assert "counts-file.md" in caught.value.remedy


def test_missing_directory_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_counts_file(tmp_path / "nowhere.json")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_counts_file(tmp_path)
    with pytest.raises(ConfigurationError, match="larger than"):
        read_counts_file(_write(tmp_path, " " * (SIZE_LIMIT_BYTES + 1)))


def test_documented_examples_are_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/counts-file.md").read_text()
    examples = [part.split("```")[0] for part in page.split("```json\n")[1:]]
    files = [read_counts_file(_write(tmp_path, example)) for example in examples]
    assert [file.protocol for file in files] == ["decoy-bb84", "single-photon"]
    assert key_length_of_file(files[0]).length_bits > 0
    assert key_length_of_file(files[1], proof="tomamichel2012").length_bits > 0
