"""TLS 1.3 with certificate identity and QKD secrecy: over real sockets, between two processes, and every refusal."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qkdhw.errors import ConfigurationError, PkiError, SessionRefusedError
from qkdhw.pki.demo_ca import create_demo_ca
from qkdhw.pki.imported_psk import import_psk, make_imported_identity
from qkdhw.pki.openssl_psk import session_reused
from qkdhw.pki.tls import exchange_echo, open_certificate_session, open_qkd_session, serve_echo
from qkdhw.secret import SecretBuffer

KEY_ID = "bc490419-7d60-487f-adc1-4ddcc177c139"
OTHER_ID = "11111111-7d60-487f-adc1-4ddcc177c139"
CLIENT, SERVER = "site-a.qkd.test", "site-b.qkd.test"
PIN = "1234-test"


def secret(data: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(data))
    buffer.copy_from(data)
    return buffer


def derive_from(key):
    return lambda key_id, context: secret(hmac.digest(key, key_id.encode() + context, "sha256"))


@pytest.fixture
def sites(tmp_path):
    ca = create_demo_ca(tmp_path / "ca")
    return ca.issue(CLIENT), ca.issue(SERVER)


def both(client, server):
    """Run the two ends, each in its thread over one socket pair; return results or errors."""
    left, right = socket.socketpair()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(client, left), pool.submit(server, right)]
        return [future.exception(timeout=30) or future.result() for future in futures]


def certificate_sessions(client, server, *, client_expects=SERVER, server_expects=CLIENT, timeout_s=5.0):
    return both(
        lambda s: open_certificate_session(
            s, credentials=client, peer_name=client_expects, server_side=False, timeout_s=timeout_s
        ),
        lambda s: open_certificate_session(
            s, credentials=server, peer_name=server_expects, server_side=True, timeout_s=timeout_s
        ),
    )


def qkd_sessions(bound_client, bound_server):
    return both(
        lambda s: open_qkd_session(s, bound_client, timeout_s=5.0),
        lambda s: open_qkd_session(s, bound_server, timeout_s=5.0),
    )


def refused(result, *words):
    assert isinstance(result, SessionRefusedError), result
    text = str(result)
    assert all(word in text for word in words), text
    assert result.remedy


def test_equal_keys_give_a_session_with_both_identities(sites):
    client, server = certificate_sessions(*sites)
    key = os.urandom(32)
    a, b = qkd_sessions(client.bind(KEY_ID, derive_from(key)), server.bind(KEY_ID, derive_from(key)))
    with a, b:
        assert (a.description.peer_name, b.description.peer_name) == (SERVER, CLIENT)
        assert a.description.group == "X25519MLKEM768"
        assert a.description.cipher == "TLS_AES_256_GCM_SHA384"
        assert a.description.key_id == KEY_ID
        assert session_reused(a._tls.ssl)
        assert session_reused(b._tls.ssl)
        for end, name in ((a, SERVER), (b, CLIENT)):
            carried = end._tls.ssl.get_peer_certificate(as_cryptography=True)
            assert carried.subject.rfc4514_string() == f"CN={name}"
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(serve_echo, b)
            for size in (1, 16384, 16385, 300_000):
                payload = os.urandom(size)
                assert exchange_echo(a, payload, timeout_s=10) == payload
            a.close()
            assert served.result(timeout=10) == 1 + 16384 + 16385 + 300_000


def test_certificate_session_alone_uses_no_psk(sites):
    client, server = certificate_sessions(*sites)
    assert not session_reused(client.connection)
    assert not session_reused(server.connection)


def test_wrong_qkd_key_is_refused_on_both_sides(sites):
    client, server = certificate_sessions(*sites)
    results = qkd_sessions(
        client.bind(KEY_ID, derive_from(os.urandom(32))), server.bind(KEY_ID, derive_from(os.urandom(32)))
    )
    refused(results[0], "QKD key check", KEY_ID, SERVER)
    refused(results[1], "QKD key check", "binder does not verify")


def test_other_key_id_is_refused(sites):
    client, server = certificate_sessions(*sites)
    key = os.urandom(32)
    for result in qkd_sessions(client.bind(OTHER_ID, derive_from(key)), server.bind(KEY_ID, derive_from(key))):
        refused(result, "QKD key check")


def test_same_key_bound_to_another_certificate_session_is_refused(sites):
    """Whoever has the QKD key alone is nobody."""
    client, _ = certificate_sessions(*sites)
    _, server = certificate_sessions(*sites)
    key = os.urandom(32)
    for result in qkd_sessions(client.bind(KEY_ID, derive_from(key)), server.bind(KEY_ID, derive_from(key))):
        refused(result, "QKD key check")


def test_server_with_a_good_certificate_but_no_key_is_refused(sites):
    """No silent fall-back to certificates: the trap of TLS stacks with PSK and certificates configured."""
    client, server = certificate_sessions(*sites)
    results = both(
        lambda s: open_qkd_session(s, client.bind(KEY_ID, derive_from(b"k" * 32)), timeout_s=5.0),
        lambda s: open_certificate_session(s, credentials=sites[1], peer_name=CLIENT, server_side=True, timeout_s=5.0),
    )
    refused(results[0], "QKD key check")
    refused(results[1], "certificate check")
    assert server.description.peer_name == CLIENT


def test_key_is_used_once(sites):
    client, server = certificate_sessions(*sites)
    bound = [session.bind(KEY_ID, derive_from(b"k" * 32)) for session in (client, server)]
    for session in qkd_sessions(*bound):
        session.close()
    for result in qkd_sessions(*bound):
        refused(result, "used for a session before")


def test_two_sessions_from_one_certificate_session(sites):
    client, server = certificate_sessions(*sites)
    for key_id in (KEY_ID, OTHER_ID):
        for session in qkd_sessions(*(x.bind(key_id, derive_from(b"k" * 32)) for x in (client, server))):
            session.close()


def test_certificate_of_a_foreign_ca_is_refused(sites, tmp_path):
    foreign = create_demo_ca(tmp_path / "foreign")
    for impostor_side in (0, 1):
        impostor = foreign.issue((CLIENT, SERVER)[impostor_side])
        impostor = replace(impostor, ca=sites[0].ca)
        pair = [impostor if i == impostor_side else site for i, site in enumerate(sites)]
        results = certificate_sessions(*pair)
        refused(results[1 - impostor_side], "certificate check", "certificate verify failed")
        refused(results[impostor_side], "certificate check", "alert")


def test_other_name_is_refused(sites):
    results = certificate_sessions(*sites, client_expects="site-c.qkd.test")
    refused(results[0], "certificate check", "site-c.qkd.test")
    refused(results[1], "does not accept")
    results = certificate_sessions(*sites, server_expects="site-c.qkd.test")
    refused(results[1], "certificate check", CLIENT, "site-c.qkd.test")
    refused(results[0], "does not accept")


def test_expired_certificate_is_refused(sites, tmp_path):
    ca = create_demo_ca(tmp_path / "ca")
    past = datetime.now(UTC) - timedelta(days=2)
    expired = ca.issue(CLIENT, now=past, lifetime=timedelta(days=1))
    results = certificate_sessions(expired, ca.issue(SERVER))
    refused(results[1], "certificate check", "certificate verify failed")
    refused(results[0], "certificate check", "expired")


def test_certificate_that_expires_later_binds_no_more_keys(sites):
    client, _ = certificate_sessions(*sites)
    with pytest.raises(SessionRefusedError, match="has expired"):
        client.bind(KEY_ID, derive_from(b""), now=datetime.now(UTC) + timedelta(days=8))


def test_no_certificate_is_refused(sites):
    """A client that offers a PSK to a certificate server, and one that hangs up."""
    results = both(
        lambda s: s.close(),
        lambda s: open_certificate_session(s, credentials=sites[1], peer_name=CLIENT, server_side=True, timeout_s=5.0),
    )
    refused(results[1], "certificate check", "closed")


def test_silent_peer_meets_the_deadline(sites):
    left, right = socket.socketpair()
    with right, pytest.raises(PkiError, match=r"within 0\.2 s"):
        open_certificate_session(left, credentials=sites[0], peer_name=SERVER, server_side=False, timeout_s=0.2)


def test_garbage_is_refused(sites):
    def talk_nonsense(sock):
        with sock, contextlib.suppress(OSError):
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            sock.settimeout(5)
            while sock.recv(4096):
                pass

    result, _ = both(
        lambda s: open_certificate_session(s, credentials=sites[0], peer_name=SERVER, server_side=False, timeout_s=5.0),
        talk_nonsense,
    )
    refused(result, "certificate check")


def test_files_that_do_not_fit(sites, tmp_path):
    for broken in (
        replace(sites[0], private_key=sites[1].private_key),
        replace(sites[0], certificate=tmp_path / "nowhere.pem"),
        replace(sites[0], ca=sites[0].private_key),
    ):
        left, right = socket.socketpair()
        with right, pytest.raises(ConfigurationError, match="cannot use"):
            open_certificate_session(left, credentials=broken, peer_name=SERVER, server_side=False)


def test_private_keys_are_for_the_owner_only(sites):
    for path in (sites[0].private_key, sites[1].private_key, sites[0].ca.with_name("ca.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_processes_two_tokens(softhsm, sites):
    """The whole way: the QKD key stays in the tokens, the session echoes; another key in one token and it is refused."""
    key = SecretBuffer.random(32)
    softhsm.make_token("site-a")
    softhsm.make_token("site-b")
    with softhsm.open("site-a") as a, softhsm.open("site-b") as b:
        a.import_key(KEY_ID, "lab", key)
        b.import_key(KEY_ID, "lab", key)
        a.import_key(OTHER_ID, "lab", SecretBuffer.random(32))
        b.import_key(OTHER_ID, "lab", SecretBuffer.random(32))
    settings = {name: str(getattr(sites[1], name)) for name in ("certificate", "private_key", "ca")}
    settings |= {"module": softhsm.module, "token": "site-b", "pin": PIN, "peer": CLIENT}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for key_id in (KEY_ID, OTHER_ID):
        command = [
            sys.executable,
            str(Path(__file__).with_name("tls_site.py")),
            json.dumps(settings | {"key_id": key_id}),
        ]
        with (
            softhsm.open("site-a") as token,
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server,
        ):
            port = int(server.stdout.readline())
            connect = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
            session = open_certificate_session(connect[0], credentials=sites[0], peer_name=SERVER, server_side=False)
            bound = session.bind(key_id, lambda k, context, t=token: t.derive_session_secret(k, b"qkdhw-tls", context))
            if key_id == KEY_ID:
                with open_qkd_session(connect[1], bound) as secured:
                    assert exchange_echo(secured, b"photons" * 1000) == b"photons" * 1000
                answer = json.loads(server.communicate(timeout=20)[0])
                assert answer == {"echoed_bytes": 7000, "group": "X25519MLKEM768"}
            else:
                with pytest.raises(SessionRefusedError, match="QKD key check"):
                    open_qkd_session(connect[1], bound)
                answer = json.loads(server.communicate(timeout=20)[0])
                assert answer["error"] == "SessionRefusedError"
                assert "binder does not verify" in answer["message"]


def test_imported_psk_is_rfc_9258_over_hkdf():
    """The same value by cryptography's HKDF, another implementation."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    epsk, identity = os.urandom(32), make_imported_identity(b"name", b"context")
    assert identity == b"\0\4name\0\7context\3\4\0\2"
    digest = hashes.Hash(hashes.SHA256())
    digest.update(identity)
    info = b"\0\x30\x11tls13 derived psk\x20" + digest.finalize()
    expected = HKDF(hashes.SHA256(), 48, salt=bytes(32), info=info).derive(epsk)
    assert import_psk(secret(epsk), identity) == secret(expected)
