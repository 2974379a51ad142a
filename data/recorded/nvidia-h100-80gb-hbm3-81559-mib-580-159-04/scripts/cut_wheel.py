"""Zero the machine code in vLLM's compiled parts that an H100 does not run for Llama's shape, so that they pack small: ``python cut_wheel.py FROM.so TO.so (fa3|ptx|none)``.

``fa3``: of FlashAttention 3 what computes bf16 with heads of 128. ``ptx``: code for 9.0, and where there is none the PTX that the driver compiles;
``none``: code for 9.0 alone. Sizes and addresses stay, and a driver looks only at the entries for its own device.
"""

import re
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

MAGIC = 0xBA55ED50
PTX, ELF = 1, 2


def fat_binaries(path: str) -> tuple[int, int]:
    """Offset and size of the section that holds them."""
    told = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\.nv_fatbin\s+\S+\s+[0-9a-f]+\s+([0-9a-f]+)\s+([0-9a-f]+)", told)
    if not found:
        raise SystemExit(f"{path}: it has no section .nv_fatbin")
    return int(found[1], 16), int(found[2], 16)


def entries(data: bytes, offset: int, size: int):
    """(fat binary, kind, architecture, offset, bytes) of each piece of code."""
    place, end, binary = offset, offset + size, 0
    while place < end:
        magic, _, header, length = struct.unpack_from("<IHHQ", data, place)
        if magic != MAGIC:
            place += 8  # padding
            continue
        at, stop = place + header, place + header + length
        while at < stop:
            kind, _, own, count = struct.unpack_from("<HHIQ", data, at)
            (architecture,) = struct.unpack_from("<I", data, at + 28)
            yield binary, kind, architecture, at + own, count
            at += own + count
        place, binary = stop, binary + 1


def wanted(pieces: list, data: bytes, mode: str) -> list:
    if mode == "fa3":
        code = data[pieces[0][3] : pieces[0][3] + pieces[0][4]]
        fits = re.search(rb"Li128ENS_10bfloat16_tEfNS_4arch4Sm90", code) and not re.search(rb"ILi(192|256|64)EEEEEELi128ENS_10bfloat16", code)
        return pieces if fits or b"FlashAttnFwdCombine" in code or b"prepare" in code else []
    own = [piece for piece in pieces if piece[1] == ELF and piece[2] == 90]
    return own or [piece for piece in pieces if mode == "ptx" and piece[1] == PTX and piece[2] <= 90]


def main(source: str, target: str, mode: str) -> None:
    data = bytearray(Path(source).read_bytes())
    by_binary = defaultdict(list)
    for piece in entries(bytes(data), *fat_binaries(source)):
        by_binary[piece[0]].append(piece)
    kept = 0
    for pieces in by_binary.values():
        keep = wanted(pieces, bytes(data), mode)
        kept += sum(piece[4] for piece in keep)
        for piece in pieces:
            if piece not in keep:
                data[piece[3] : piece[3] + piece[4]] = bytes(piece[4])
    Path(target).write_bytes(data)
    print(f"{target}: {kept} bytes of code kept")


if __name__ == "__main__":
    main(*sys.argv[1:4])
