"""Count copies of a key in another process's memory: python memory_scanner.py PID, masked key in hex on stdin.

The key comes XORed with 0xA5, so that neither the pipe nor the scanned process need hold another plain copy. Prints
one line for each form found: its name and how often it is there.
"""

import base64
import sys

MASK = 0xA5


def forms_of(key: bytes) -> dict[str, bytes]:
    forms = {
        "raw": key,
        "middle": key[8:24],
        "hex": key.hex().encode(),
        "HEX": key.hex().upper().encode(),
    }
    for shift in range(3):  # base64 of text in which the key starts at any alignment
        text = base64.b64encode(b"\0" * shift + key)
        start = 4 if shift else 0
        forms[f"base64+{shift}"] = text[start : len(text) - 4]
    return forms


def readable_maps(pid: int) -> list[tuple[int, int]]:
    with open(f"/proc/{pid}/maps") as maps:
        rows = [line.split() for line in maps]
    return [
        (int(row[0].split("-")[0], 16), int(row[0].split("-")[1], 16))
        for row in rows
        if row[1].startswith("r") and (len(row) < 6 or row[5] not in {"[vvar]", "[vsyscall]"})
    ]


def count_in_memory(pid: int, forms: dict[str, bytes]) -> dict[str, int]:
    found = dict.fromkeys(forms, 0)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end in readable_maps(pid):
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except OSError:
                continue
            for name, needle in forms.items():
                found[name] += content.count(needle)
    return found


if __name__ == "__main__":
    wanted = forms_of(bytes(byte ^ MASK for byte in bytes.fromhex(sys.stdin.readline())))
    for form, count in count_in_memory(int(sys.argv[1]), wanted).items():
        if count:
            print(form, count)
