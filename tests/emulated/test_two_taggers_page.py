"""The tutorial from two taggers' files to an error rate, as it stands: every command and its ten lines."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from qkdhw.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "two-taggers.md").read_text("utf-8")


def test_every_command_and_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in re.findall(r"^    qkdhw (.+)$", PAGE, re.MULTILINE)]
    assert len(commands) == 17
    said = {}
    for words in commands:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
        said[words[1]] = done.output
    assert "significance sigma" in said["align"]
    assert "QBER" in said["sift"]
    signal, by_chance = (
        float(re.search(rf"{name} +│ ([\d,.]+)", said["coincidences"])[1].replace(",", ""))
        for name in ("net coincidences", "accidentals")
    )
    assert signal > 500 > 50 > by_chance, said["coincidences"]
    assert {p.name for p in tmp_path.glob("*.png")} == {"rates.png", "g2.png", "arrivals.png", "pairs.png"}
    (lines,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    assert len(lines.strip().splitlines()) <= 11
    exec(compile(lines, "two-taggers.md", "exec"), {})
    told = capsys.readouterr().out
    by_chance, met = map(int, re.search(r"accidental (\d+) of (\d+)", told).groups())
    assert 10 < by_chance < 100
    assert 17_000 < met < 21_000
    rates = [float(rate) for rate in re.findall(r"([\d.]+)%", told)]
    assert len(rates) == 2
    assert all(0.5 < rate < 8 for rate in rates)
