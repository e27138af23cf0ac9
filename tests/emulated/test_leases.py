"""One bench at a time has a unit; who comes second is told who has it."""

import json
import os
import subprocess
import sys
import time

import pytest

from qkdhw.bench import open_bench
from qkdhw.bench.lease import holders, lease
from qkdhw.errors import TransportError
from qkdhw_emulators.bench import serve_bench

HOLD = "import sys; from qkdhw.bench.lease import lease\nwith lease(sys.argv[1]): print('held', flush=True); sys.stdin.read()"


def holding(url):
    return subprocess.Popen([sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def url(tmp_path):
    return f"serial://{tmp_path}/unit"


def test_the_second_is_told_who_has_it_and_gets_it_afterwards(url):
    with holding(url) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TransportError, match=f"process {other.pid} of") as raised, lease(f"{url}?baud=9600"):
            pass
        assert "unit" in str(raised.value)
        assert raised.value.remedy
        assert other.pid in {holder.process for holder in holders()}
        other.stdin.close()
        other.wait(20)
    assert other.pid not in {holder.process for holder in holders()}
    with lease(url):
        assert os.getpid() in {holder.process for holder in holders() if holder.url == url}


def test_a_lease_ends_with_its_holder_however_it_ends(url):
    with holding(url) as other:
        assert other.stdout.readline() == "held\n"
        other.kill()
        other.wait(20)
    with lease(url):
        pass


def test_one_waits_for_the_other(url):
    with holding(url) as other:
        assert other.stdout.readline() == "held\n"
        begun_s = time.monotonic()
        with pytest.raises(TransportError), lease(url, wait_s=0.2):
            pass
        assert time.monotonic() - begun_s >= 0.2
        other.stdin.close()
        with lease(url, wait_s=20):
            pass


def test_a_bench_has_its_units_until_it_is_closed(tmp_path):
    file = tmp_path / "bench.toml"
    file.write_text(f'[units.attenuator]\nname = "agilent-8156a"\nurl = "serial://{tmp_path}/attenuator"\n')
    with serve_bench(file):
        with open_bench(file), pytest.raises(TransportError, match="in use by process"):
            open_bench(file)
        with open_bench(file) as again:
            assert again.units["attenuator"].attenuation_db == 0.0


def test_what_others_wrote_is_not_printed_as_it_is(url, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["\x1b[31mevil\n"])
    with lease(url), pytest.raises(TransportError, match="in use by another bench"), lease(url):
        pass


def test_leases_are_listed(url):
    with lease(url):
        done = subprocess.run(
            [sys.executable, "-m", "qkdhw", "devices", "list", "--json"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert url in {each["url"] for each in json.loads(done.stdout)["leases"]}
