"""Many event files with the same kernels, in this process or on the workers of a Dask cluster; the results are equal.

A task is a file. A worker that dies costs time: its file is begun anew by another one, and what is written appears
whole or not at all. All workers must see the files, and the output folder, under the same paths.

Security: events and sifted bits are raw key. The workers, and whoever may submit to or attach to the cluster, see
them; between machines use a scheduler address of tls:// with certificates that Dask's own configuration names
(distributed.comm.tls), which is the user's to set up: a Dask scheduler without TLS runs any code that anybody sends it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from qkdhw.bench.clocks import qber_facts
from qkdhw.bench.file_jobs import FileJob, FileResult, ProcessOptions, check_jobs, run_file_job, write_json
from qkdhw.errors import ConfigurationError, TransportError

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class ProcessProgress:
    """How far it is.

    Attributes:
        files: Files done.
        of_files: Files all in all.
        events: Events in those that are done, and those read of the one that is not, if it is read here.
        part: How much of that one is read, 0 to 1; 0 if unknown.
    """

    files: int
    of_files: int
    events: int
    part: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """What came of all files.

    Attributes:
        results: One for each file, in the order given.
        totals: files, failed, events; with sifting kept and errors (by basis, and intensity with records), qber and
            qber_error by basis.
    """

    results: tuple[FileResult, ...]
    totals: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-able."""
        return {"totals": self.totals, "files": [asdict(result) for result in self.results]}


def process_files(
    files: Sequence[Path | str],
    options: ProcessOptions | None = None,
    *,
    out: Path | str | None = None,
    scheduler: str | None = None,
    on_progress: Callable[[ProcessProgress], None] = lambda _: None,
    on_read: Callable[[ProcessProgress], None] = lambda _: None,
    timeout_s: float = 10.0,
) -> ProcessReport:
    """Process event files, one task a file.

    With an output folder each file gets NUMBER-NAME.json and, when sifted, its bits: NUMBER-NAME.receiver.key and
    .receiver.test (with partners: of the announcing site), .sender.key and .sender.test, 8 bits a byte from bit 0 on;
    summary.json has the whole. The folder is for its owner only: the bits are raw key.

    Args:
        files: The event files.
        options: What to do with each; by default events are counted.
        out: Folder for what comes out; new or empty.
        scheduler: Address of a Dask scheduler, such as tls://10.0.0.1:8786; None: in this process, one by one.
        on_progress: Called after each file.
        on_read: Called, from any thread, while a file is read in this process.
        timeout_s: Longest wait for the scheduler.

    Returns:
        A result for each file, also for those that failed, and the totals.

    Raises:
        ConfigurationError: Files and options do not fit, the folder is not empty, or `distributed` is not installed.
        TransportError: The scheduler cannot be reached or was lost.
        EventError: The folder or the summary cannot be written.
    """
    options = options or ProcessOptions()
    options = replace(
        options,
        records=tuple(_absolute(path) for path in options.records),
        partners=tuple(_absolute(path) for path in options.partners),
        bases=tuple(_absolute(path) for path in options.bases),
        seed=options.seed or secrets.token_bytes(32),
    )
    paths = tuple(_absolute(path) for path in files)
    folder = None if out is None else _absolute(out)
    check_jobs(paths, options, folder)
    names = Counter(path.name for path in paths)
    jobs = [
        FileJob(number, path, options, folder, str(given) if names[path.name] > 1 else "")
        for number, (path, given) in enumerate(zip(paths, files, strict=True))
    ]
    results: dict[int, FileResult] = {}

    def show(events: int, part: float | None) -> None:
        done = list(results.values())
        on_read(ProcessProgress(len(done), len(jobs), sum(r.events for r in done) + events, part or 0.0))

    here = (run_file_job(job, show) for job in jobs)
    for result in here if scheduler is None else _on_cluster(jobs, scheduler, timeout_s):
        results[result.number] = result
        on_progress(ProcessProgress(len(results), len(jobs), sum(r.events for r in results.values())))
    report = _report(tuple(results[job.number] for job in jobs))
    if folder is not None:
        for leftover in folder.glob(".*.part"):  # of workers that died
            leftover.unlink(missing_ok=True)
        write_json(folder / SUMMARY, report.as_dict())
    return report


def _absolute(path: Path | str) -> Path:
    return Path(path).absolute()


def _on_cluster(jobs: list[FileJob], scheduler: str, timeout_s: float) -> Iterator[FileResult]:
    with _client(scheduler, timeout_s) as (distributed, client):
        futures = client.map(run_file_job, jobs, pure=False)
        by_key = {future.key: job for future, job in zip(futures, jobs, strict=True)}
        for future in distributed.as_completed(futures, loop=client.loop):
            job = by_key[future.key]
            try:
                yield future.result(timeout=timeout_s)
            except distributed.KilledWorker:
                reason = "the workers that took this file died, one after the other"
                yield FileResult(job.number, job.name, error=f"TransportError: {reason}")


@contextmanager
def _client(scheduler: str, timeout_s: float) -> Iterator[tuple[Any, Any]]:
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise ConfigurationError("a cluster needs Dask's distributed", remedy="pip install 'qkdhw[dask]'") from error
    try:
        client = distributed.Client(scheduler, timeout=timeout_s, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TransportError(
            f"the scheduler at {scheduler} cannot be reached: {error}", remedy="check that it runs and its address"
        ) from error
    with client:
        try:
            yield distributed, client
        except (OSError, distributed.client.FutureCancelledError) as error:
            raise TransportError(f"the scheduler at {scheduler} was lost: {error}", remedy="begin again") from error


def _report(results: tuple[FileResult, ...]) -> ProcessReport:
    totals: dict[str, Any] = {
        "files": len(results),
        "failed": sum(bool(result.error) for result in results),
        "events": sum(result.events for result in results),
    }
    for name in ("kept", "errors"):
        found = [result.facts[name] for result in results if name in result.facts]
        if found:
            totals[name] = _sum(found)
    if "kept" in totals:
        totals |= qber_facts(_over_intensities(totals["kept"]), _over_intensities(totals["errors"]))
    return ProcessReport(results, totals)


def _sum(found: list[Any]) -> Any:
    """Add numbers, or mappings of them name by name."""
    if isinstance(found[0], Mapping):
        return {name: _sum([each[name] for each in found]) for name in found[0]}
    return sum(found)


def _over_intensities(counts: Mapping[str, Any]) -> dict[str, int]:
    return {basis: sum(n.values()) if isinstance(n, Mapping) else n for basis, n in counts.items()}
