"""The pages about simulated links: every command of the how-to, every cell of the notebook, in order, as they stand."""

import json
import re
import shlex
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from typer.testing import CliRunner

from qkdhw.cli import app

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = DOCS / "tutorials" / "simulated-link.ipynb"
PAGE = DOCS / "how-to" / "simulate-a-link.md"


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.fixture
def _no_screen():
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    plt.close("all")
    matplotlib.use(before)


@pytest.mark.usefixtures("_no_screen")
def test_every_cell_of_the_notebook_runs_and_shows_what_it_showed(capsys):
    space = {}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), space)
        printed, figures = capsys.readouterr().out, len(plt.get_fignums())
        plt.close("all")
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert kinds == ["stream"] * bool(printed) + ["display_data"] * figures
    space["simulation"].close()


def test_the_notebook_is_one_that_jupyter_opens():
    """The parts of the format, version 4.5, that Jupyter insists on."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in cells("code"):
        assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
    for cell in cells("markdown"):
        assert set(cell) == {"cell_type", "id", "metadata", "source"}


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    page = PAGE.read_text()
    monkeypatch.chdir(tmp_path)
    Path("attacks.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    commands = re.findall(r"^    qkdhw (.*)$", page, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
        assert done.exit_code == 0, f"{command}\n{done.output}"
    assert {p.name for p in tmp_path.iterdir()} == {"attacks.toml", "far.toml", "pairs", "toshiba"}
    for name in ("counts", "intervals", "gate", "g2", "qber", "saturation"):
        assert f"**{name}**" in page
        assert (tmp_path / "toshiba" / "plots" / f"{name}.png").exists()
