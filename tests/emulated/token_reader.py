"""What one site's token holds, read with python-pkcs11 alone: `python token_reader.py SITE_FOLDER NONCE_HEX`."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass


def read_token(folder: Path, nonce: bytes) -> list[dict[str, object]]:
    site = tomllib.loads((folder / "site.toml").read_text())["token"]
    token = pkcs11.lib(site["module"]).get_token(token_label=site["token"])
    keys = []
    with token.open(user_pin=(folder / site["pin_file"]).read_text().strip()) as session:
        for key in list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True})):
            try:
                readable = bool(key[Attribute.VALUE])
            except pkcs11.AttributeSensitive:
                readable = False
            keys.append(
                {
                    "key_id": key[Attribute.ID].hex(),
                    "mac": key.sign(nonce, mechanism=Mechanism.SHA256_HMAC).hex(),
                    "sensitive": key[Attribute.SENSITIVE],
                    "extractable": key[Attribute.EXTRACTABLE],
                    "readable": readable,
                }
            )
    return sorted(keys, key=lambda key: str(key["key_id"]))


if __name__ == "__main__":
    json.dump(read_token(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])), sys.stdout)
