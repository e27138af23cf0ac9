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
.failed p {{ margin: .2rem 0 0; }}
small {{ color: #555; }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }} dd {{ margin: 0; }}
</style></head><body>
<h1>{driver}</h1>
<p class="verdict">{verdict}</p>
<dl>
{facts}
</dl>
<table><tr><th>check</th><th>rule</th><th>verdict</th><th class="s">seconds</th></tr>
{rows}
</table>
<p>Written {date} UTC by qkdhw {version}.</p>
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
        rows="\n".join(_row(check) for check in sorted(report["checks"], key=lambda each: each["verdict"] != "failed")),
        facts="\n".join(f"<dt>{name}</dt><dd>{html.escape(fact)}</dd>" for name, fact in _facts(report).items()),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        version=html.escape(report["qkdhw"]),
    )


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """Return which unit it was and how it was looked at."""
    unit = {name.replace("_", " "): value or "not told" for name, value in report["unit"].items()}
    emulated = f"emulated, seed {report['seed']}" if report["emulated"] else "a real unit: faults could not be switched"
    facts = unit | {"driver": report["driver"], "address": report["address"], "transport": report["transport"]}
    return facts | {"unit": emulated, "rounds": str(report["rounds"])}


def _row(check: Mapping[str, Any]) -> str:
    verdict = str(check["verdict"])
    colour = verdict.split(maxsplit=1)[0]
    detail = html.escape(check["detail"])
    if detail:
        detail = f'<div class="failed"><p>{detail}</p></div>' if colour == "failed" else f"<br><small>{detail}</small>"
    return (
        f"<tr><td>{html.escape(check['check'])}</td><td>{html.escape(check['rule'])}{detail}</td>"
        f'<td class="{colour}">{verdict}</td><td class="s">{check["duration_s"]:.2f}</td></tr>'
    )
