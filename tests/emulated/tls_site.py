"""One site of a TLS test as a process of its own: `python tls_site.py '<json>'`; prints its port, then one JSON line."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from qkdhw.errors import QkdhwError
from qkdhw.export.pkcs11 import Pkcs11Token
from qkdhw.pki.identity import SiteCredentials
from qkdhw.pki.tls import open_certificate_session, open_qkd_session, serve_echo


def serve(settings):
    credentials = SiteCredentials(*(Path(settings[k]) for k in ("certificate", "private_key", "ca")))
    with (
        Pkcs11Token.open(settings["module"], settings["token"], lambda: settings["pin"]) as token,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        listener.settimeout(30)
        print(listener.getsockname()[1], flush=True)
        session = open_certificate_session(
            listener.accept()[0], credentials=credentials, peer_name=settings["peer"], server_side=True
        )
        bound = session.bind(
            settings["key_id"], lambda key_id, context: token.derive_session_secret(key_id, b"qkdhw-tls", context)
        )
        with open_qkd_session(listener.accept()[0], bound) as secured:
            return {"echoed_bytes": serve_echo(secured), "group": secured.description.group}


if __name__ == "__main__":
    try:
        print(json.dumps(serve(json.loads(sys.argv[1]))))
    except QkdhwError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
