"""One site of one link: a unit, a classical channel, post-processing, a key store and what comes after it.

`run_site(load_site("site.toml"), emit)` is a whole site; `qkdhw link run` is that and printing. The files here:

    config.py    what a site is told (TOML), checked field by field
    peer.py      sealed messages over the channel; the handshake that also settles blocks cut off by a crash
    streams.py   threads that keep a unit's stream flowing while a block is being processed
    monitoring.py  monitors of the receiver's detectors, and their alarms
    calibrating.py  what these monitors take for normal
    blocks.py    one block from either unit's stream to durable keys at both sites
    handover.py  keys to the token, confirmation between the tokens
    tls_handover.py  the TLS session that they are for
    sessions.py  one session of a site, from handshake to farewell
    site.py      the loop that opens a site and begins sessions
"""

from qkdhw.link.blocks import Emit
from qkdhw.link.calibrating import calibrate_site
from qkdhw.link.config import SiteConfig, load_site
from qkdhw.link.monitoring import AlarmFile
from qkdhw.link.site import run_site

__all__ = ["AlarmFile", "Emit", "SiteConfig", "calibrate_site", "load_site", "run_site"]
