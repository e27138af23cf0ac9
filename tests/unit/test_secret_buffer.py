"""SecretBuffer: its contract, and a scan of a process's memory by another that finds no copy of a key."""

import copy
import gc
import mmap
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw._core import secret_buffer
from qkdhw.secret import SecretBuffer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BOUND_NOW = {**os.environ, "PYTHONPATH": str(ROOT), "LD_BIND_NOW": "1"}


def copies_left(way: str, directory: Path) -> dict[str, int]:
    with subprocess.Popen(
        [sys.executable, HERE / "secret_holder.py", way],
        env={**BOUND_NOW, "TMPDIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            masked = holder.stdout.readline()
            assert len(masked) == 65, "the holder failed"
            assert holder.stdout.readline() == "ready\n"
            scan = subprocess.run(
                [sys.executable, HERE / "memory_scanner.py", str(holder.pid)],
                input=masked,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
        finally:
            holder.stdin.close()
            holder.wait(timeout=30)
    assert holder.returncode == 0
    return {name: int(count) for name, count in (line.split() for line in scan.stdout.splitlines())}


@pytest.fixture(autouse=True)
def _needs_memory_access():
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")


def test_scanner_finds_live_bytes(tmp_path):
    assert copies_left("bytes", tmp_path)["raw"] >= 1


def test_scanner_finds_base64(tmp_path):
    assert "base64+1" in copies_left("base64", tmp_path)


def test_scanner_finds_live_secret_buffer_once(tmp_path):
    assert copies_left("live_buffer", tmp_path) == {"raw": 1, "middle": 1}


@pytest.mark.parametrize(
    "way",
    [
        "closed_buffer",
        "dropped_buffer",
        "copied_and_compared",
        "read_from_file",
        "stored",
        "taken_and_closed",
        "authentication_key",
    ],
)
def test_no_copy_is_left(way, tmp_path):
    assert copies_left(way, tmp_path) == {}


def test_the_known_name_is_the_compiled_class():
    assert SecretBuffer is secret_buffer.SecretBuffer


@given(content=st.binary(max_size=9000))
def test_round_trip(content):
    with SecretBuffer(len(content)) as buffer:
        buffer.copy_from(content)
        assert len(buffer) == len(content)
        assert buffer == content
        assert bytes(memoryview(buffer)) == content


@given(content=st.binary(max_size=100), start=st.integers(-5, 105), n=st.integers(-5, 105))
def test_slice_copy_is_a_slice_or_refused(content, start, n):
    with SecretBuffer(len(content)) as buffer:
        buffer.copy_from(content)
        if start >= 0 and n >= 0 and start + n <= len(content):
            with buffer.slice_copy(start, n) as part:
                assert part == content[start : start + n]
        else:
            with pytest.raises(ValueError, match="not inside"):
                buffer.slice_copy(start, n)


@given(left=st.binary(max_size=40), right=st.binary(max_size=40))
def test_equality_is_that_of_contents(left, right):
    with SecretBuffer(len(left)) as buffer:
        buffer.copy_from(left)
        assert (buffer == right) == (left == right)
        assert (right == buffer) == (left == right)
        assert (buffer != right) == (left != right)


def test_one_bit_makes_unequal():
    with SecretBuffer.random(100) as buffer:
        for index in range(100):
            other = bytearray(buffer)
            other[index] ^= 0x80
            assert buffer != other


def test_not_equal_to_text():
    with SecretBuffer(0) as buffer:
        assert buffer != ""
        assert buffer == b""


@pytest.mark.parametrize("size", [0, 1, 31, 4095, 4096, 4097, 5_000_000])
def test_sizes(size):
    with SecretBuffer.random(size) as buffer:
        assert len(buffer) == len(memoryview(buffer)) == size


def test_random_differs():
    with SecretBuffer.random(32) as one, SecretBuffer.random(32) as other:
        assert one != other
        assert one != bytes(32)


def test_numpy_writes_into_it():
    with SecretBuffer(16) as buffer:
        array = np.frombuffer(buffer, dtype=np.uint64)
        array[1] = 255
        del array
        assert buffer == bytes(8) + b"\xff" + bytes(7)


def test_close_with_a_live_view_is_refused():
    buffer = SecretBuffer(8)
    with memoryview(buffer), pytest.raises(BufferError, match="1 views"):
        buffer.close()
    buffer.close()
    buffer.close()
    assert buffer.closed


@pytest.mark.parametrize(
    "use",
    [
        memoryview,
        bytes,
        lambda b: b == b"",
        lambda b: b.slice_copy(0, 0),
        lambda b: b.copy_from(b""),
        lambda b: b.__enter__(),
    ],
)
def test_use_after_close_is_refused(use):
    buffer = SecretBuffer(0)
    buffer.close()
    with pytest.raises(ValueError, match="closed"):
        use(buffer)


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps, hash, iter, "{:x}".format])
def test_no_copy_pickle_hash_or_format(use):
    with SecretBuffer(8) as buffer, pytest.raises(TypeError):
        use(buffer)


def test_text_shows_the_length_only():
    with SecretBuffer(8) as buffer:
        buffer.copy_from(b"\x41" * 8)
        assert repr(buffer) == str(buffer) == f"{buffer}" == "<SecretBuffer of 8 bytes>"
    assert repr(buffer) == "<SecretBuffer of 8 bytes, closed>"


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="-1 bytes"):
        SecretBuffer(-1)
    with SecretBuffer(4) as buffer, pytest.raises(ValueError, match="3 bytes do not fit"):
        buffer.copy_from(b"abc")


def test_no_memory_is_an_error():
    with pytest.raises(OSError, match="memory"):
        SecretBuffer(2**62)


def test_from_fd():
    reading, writing = os.pipe()
    try:
        os.write(writing, b"abcdefgh")
        with SecretBuffer.from_fd(reading, 5) as buffer:
            assert buffer == b"abcde"
        os.close(writing)
        with pytest.raises(EOFError, match="3 of 4"):
            SecretBuffer.from_fd(reading, 4)
    finally:
        os.close(reading)
    with pytest.raises(OSError, match="descriptor"):
        SecretBuffer.from_fd(reading, 4)


def test_references_do_not_leak():
    buffer = SecretBuffer(8)
    before = sys.getrefcount(buffer)
    for _ in range(100):
        memoryview(buffer).release()
        assert buffer == bytes(8)
    gc.collect()
    assert sys.getrefcount(buffer) == before
    buffer.close()


def run_child(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=BOUND_NOW, capture_output=True, text=True, timeout=30, check=False
    )


def test_a_forked_child_sees_zeros():
    done = run_child("""
import os
from qkdhw.secret import SecretBuffer
buffer = SecretBuffer(32); buffer.copy_from(b"x" * 32)
pid = os.fork()
if pid == 0:
    os._exit(0 if buffer == bytes(32) else 1)
assert os.waitpid(pid, 0)[1] == 0
assert buffer == b"x" * 32
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("offset", [8, -mmap.PAGESIZE])
def test_guard_pages_stop_stray_access(offset):
    # ctypes walks off the end, or below the page the data lie in
    done = run_child(f"""
import ctypes
from qkdhw.secret import SecretBuffer
buffer = SecretBuffer(8)
address = ctypes.addressof((ctypes.c_char * 8).from_buffer(buffer))
ctypes.string_at(address + {offset}, 1)
""")
    assert done.returncode == -signal.SIGSEGV


def test_pages_are_kept_out_of_core_dumps_and_locked():
    with SecretBuffer(8) as buffer:
        if not buffer.locked:
            pytest.skip("this system does not lock pages for this user")
        address = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
        flags = flags_of_mapping(address)
    assert {"dd", "lo", "wf"} <= flags  # VM_DONTDUMP, VM_LOCKED, VM_WIPEONFORK


def flags_of_mapping(address: int) -> set[str]:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    pytest.fail("mapping not found")


def test_a_refused_lock_is_counted_or_raises():
    done = run_child("""
import os, resource
from qkdhw.secret import SecretBuffer, unlocked_count
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setuid(65534)  # root may lock without limit
first = SecretBuffer(8)
assert not first.locked and unlocked_count() == 1, (first.locked, unlocked_count())
try:
    SecretBuffer(8, require_lock=True)
except OSError:
    pass
else:
    raise SystemExit("no error")
assert unlocked_count() == 1
""")
    assert done.returncode == 0, done.stderr
