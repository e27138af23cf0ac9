"""All fuzz targets by name."""

import fuzz_decoders
import fuzz_files
import fuzz_peers
import fuzz_streams

TARGETS = {**fuzz_decoders.TARGETS, **fuzz_files.TARGETS, **fuzz_streams.TARGETS, **fuzz_peers.TARGETS}
