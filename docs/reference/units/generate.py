"""Write the generated parts of the unit pages from what drivers and emulators declare: `make docs`.

A page has `<!-- generated: settings NAME -->` and `<!-- end -->`; what stands between them is written anew. A test
checks that the pages are as this would write them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from qkdhw.drivers import installed_drivers, load_driver
from qkdhw.drivers.setting import Setting, settings_of
from qkdhw.errors import ConfigurationError
from qkdhw_emulators.in_process import emulator_class

FOLDER = Path(__file__).parent
MARKS = re.compile(r"(<!-- generated: settings ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
INDEX_MARKS = re.compile(r"(<!-- generated: index -->\n).*?(<!-- end -->)", re.DOTALL)


def facts_of(name: str) -> str:
    """Return the generated part of a unit's page."""
    driver = load_driver(name)
    lines = [
        f"| | |\n|---|---|\n| contracts | {', '.join(f'`{each}`' for each in sorted(driver.capabilities))} |",
        f"| addresses | {', '.join(f'`{each}://`' for each in driver.schemes)} |",
        f"| errors are told by | {driver.error_style} |",
    ]
    if driver.usb_ids:
        lines.append(f"| found by USB ID | {', '.join(f'`{each}`' for each in driver.usb_ids)} |")
    lines += _emulator_lines(name)
    declared = settings_of(driver)
    if declared:
        lines.append("\n| setting | | allowed | channels | step | what it is |\n|---|---|---|---|---|---|")
        lines += [_row(setting) for setting in declared.values()]
        lines.append(
            "\n`r` is a reading; `w` cannot be read back; ∅ is not set again by itself after a reconnect; a time is "
            "how long a value takes to hold."
        )
    return "\n".join(lines) + "\n"


def page_of(text: str) -> str:
    """Return a page with its generated parts as they should be."""
    text = MARKS.sub(lambda match: match[1] + facts_of(match[2]) + match[3], text)
    return INDEX_MARKS.sub(lambda match: match[1] + index() + match[2], text)


def index() -> str:
    """Return the table of all units."""
    rows = ["| driver | instrument | contracts | addresses |", "|---|---|---|---|"]
    for name in installed_drivers():
        if not (FOLDER / f"{name}.md").exists():
            continue  # somebody else's
        driver = load_driver(name)
        rows.append(
            f"| [`{name}`](units/{name}.md) | {driver.vendor} {driver.model}, {driver.unit_kind} | "
            f"{', '.join(sorted(driver.capabilities))} | {', '.join(driver.schemes)} |"
        )
    return "\n".join(rows) + "\n"


def _emulator_lines(name: str) -> list[str]:
    try:
        emulator = emulator_class(name)
    except ConfigurationError:
        return []
    conditions = ", ".join(f"`{each}` ({value:g})" for each, value in emulator.conditions.items())
    faults = ", ".join(f"`{each}`" for each in sorted(emulator.unit_faults))
    return [
        f"| emulator senses | {conditions or 'nothing'} |",
        f"| emulator's own faults | {faults or 'none'} |",
    ]


def _row(setting: Setting[Any]) -> str:
    allowed = setting.allowed() if setting.writable else f"{setting.kind.__name__} {setting.unit}".strip()
    step = f"{setting.step:g} {setting.unit}".strip() if setting.step else ""
    if setting.relative_step:
        step = f"{setting.relative_step:.2g} of the value"
    marks = setting.access + (" ∅" if setting.writable and not setting.restore else "")
    settle = f" ({setting.settle_s:g} s)" if setting.settle_s else ""
    channels = ", ".join(map(str, setting.channels))
    return f"| `{setting.name}` | {marks}{settle} | {allowed} | {channels} | {step} | {setting.doc} |"


def pages() -> list[Path]:
    """Return the pages with generated parts."""
    return [*sorted(FOLDER.glob("*.md")), FOLDER.parent / "units.md"]


def main() -> int:
    """Write all pages."""
    for page in pages():
        old = page.read_text("utf-8")
        new = page_of(old)
        if new != old:
            page.write_text(new, "utf-8")
            sys.stdout.write(f"wrote {page.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
