"""Every decoder has a fuzz target, and every target holds for its seeds, cut and damaged."""

import re
from pathlib import Path

import pytest
from fuzz_targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
FUZZED = "".join(path.read_text() for path in Path(__file__).parent.glob("fuzz_*.py"))
# Reached through the decoders of qkdhw.formats, which find themselves, and through the messages of postprocessing.
REACHED = "".join(
    path.read_text() for room in ("formats", "postprocessing") for path in (ROOT / "qkdhw" / room).glob("*.py")
)
NOT_OF_OUTSIDERS = {"decode_syndrome"}  # decodes an array that reconciliation has made


@pytest.mark.parametrize("kernel", sorted((ROOT / "ext").glob("*.pyx")), ids=lambda path: path.stem)
def test_every_decoding_kernel_is_fuzzed(kernel):
    decoders = set(re.findall(r"^def (decode_\w+)", kernel.read_text(), re.MULTILINE)) - NOT_OF_OUTSIDERS
    assert {name for name in decoders if name not in FUZZED and name not in REACHED} == set()


def test_every_reader_of_messages_is_fuzzed():
    for room in ("postprocessing", "drivers"):
        for path in (ROOT / "qkdhw" / room).glob("*.py"):
            readers = re.findall(r"^def ((?:parse|decode)_\w+)\(", path.read_text(), re.MULTILINE)
            assert [name for name in readers if name not in FUZZED] == [], path.name


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds(name):
    seeds = TARGETS[name].seeds()
    assert seeds
    assert all(len(seed) <= TARGETS[name].max_bytes for seed in seeds)
    for seed in seeds[:: 1 + len(seeds) * TARGETS[name].slowness // 80]:
        for octets in (seed, seed[: len(seed) * 2 // 3], seed[:9] + b"\xff" * 9 + seed[18:]):
            TARGETS[name].check(octets)
