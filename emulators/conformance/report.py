"""A conformance report as a page for people."""

from __future__ import annotations

import html
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{driver}: conformance</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }}
table {{ border-collapse: collapse; width: 100%; }}
th {{ text-align: left; border-bottom: 2px solid #888; padding: .3rem 1rem .3rem 0; }}
td {{ border-bottom: 1px solid #ddd; padding: .3rem 1rem .3rem 0; vertical-align: top; }}
.s {{ font-variant-numeric: tabular-nums; text-align: right; }}
.verdict {{ padding: .6rem 1rem; background: {colour}; border-radius: .4rem; }}
.passed {{ color: #17692b; }} .failed {{ color: #a40000; font-weight: bold; }} .not {{ color: #666; }}
small {{ color: #555; }}
</style></head><body>
<h1>{driver}</h1>
<p class="verdict">{verdict}</p>
<table><tr><th>check</th><th>rule</th><th>verdict</th><th class="s">seconds</th></tr>
{rows}
</table>
<p>{address}, {emulated}. Written {date} UTC by qkdhw {version}.</p>
</body></html>
"""


def html_report(report: Mapping[str, Any]) -> str:
    """Return a self-contained page."""
    counts = report["counts"]
    summary = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    return PAGE.format(
        driver=html.escape(report["driver"]),
        verdict=f"{'Conforms' if report['conforms'] else 'Does not conform'}: {summary}.",
        colour="#dff3e3" if report["conforms"] else "#fbe3e3",
        rows="\n".join(_row(check) for check in report["checks"]),
        address=html.escape(report["address"]),
        emulated="on an emulated unit" if report["emulated"] else "on a real unit: faults could not be switched",
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        version=html.escape(report["qkdhw"]),
    )


def _row(check: Mapping[str, Any]) -> str:
    verdict = str(check["verdict"])
    detail = f"<br><small>{html.escape(check['detail'])}</small>" if check["detail"] else ""
    return (
        f"<tr><td>{html.escape(check['check'])}</td><td>{html.escape(check['rule'])}{detail}</td>"
        f'<td class="{verdict.split(maxsplit=1)[0]}">{verdict}</td><td class="s">{check["duration_s"]:.2f}</td></tr>'
    )
