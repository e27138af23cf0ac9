"""Every driver has a page, and what is generated on it is what its driver and emulator declare today."""

import importlib.util
from pathlib import Path

import pytest

from qkdhw.drivers import installed_drivers

FOLDER = Path(__file__).parents[2] / "docs" / "reference" / "units"
SPEC = importlib.util.spec_from_file_location("unit_pages", FOLDER / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)
OURS = [name for name, point in installed_drivers().items() if point.value.startswith("qkdhw.drivers.")]


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_the_page_is_as_it_would_be_generated(page):
    text = page.read_text("utf-8")
    assert generate.page_of(text) == text, "run `make docs`"


@pytest.mark.parametrize("name", OURS)
def test_every_driver_has_a_page_with_its_settings(name):
    text = (FOLDER / f"{name}.md").read_text("utf-8")
    assert f"<!-- generated: settings {name} -->" in text
    assert "emulat" in text.lower() or "library" in text.lower()


def test_a_changed_fact_is_noticed():
    text = (FOLDER / "agilent-8156a.md").read_text("utf-8")
    assert generate.page_of(text.replace("attenuation_db", "attenuation")) != text.replace(
        "attenuation_db", "attenuation"
    )
    assert "`attenuation_db`" in text
