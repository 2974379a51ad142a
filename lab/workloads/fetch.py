"""Download data sets: whole or not at all, and the same bytes every time."""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from lab.workloads.sources import File, Source

RECORD = "checksums.json"  # in the data folder: what was fetched whose checksum is not known beforehand


def fetch(source: Source, folder: Path) -> None:
    """Fetch what of a source is not in the folder yet. Raises OSError, with one line that says which file and why."""
    for file in source.files:
        target = folder / file.path
        if _is_there(file, folder):
            print(f"{target}: already there, checksum {'as published' if file.sha256 else 'as first fetched'}")
        else:
            _download(file, folder)
        if file.unpack:
            _unpack(target, file.unpack)


def _is_there(file: File, folder: Path) -> bool:
    target, expected = folder / file.path, _expected(file, folder)
    return target.is_file() and expected is not None and _sha256(target) == expected


def _download(file: File, folder: Path) -> None:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    digest, got = hashlib.sha256(), 0
    try:
        request = urllib.request.Request(file.url, headers={"User-Agent": "feather-scheduler"})
        with urllib.request.urlopen(request, timeout=30) as answer, partial.open("wb") as out:
            length = answer.headers.get("Content-Length")
            size = int(length) if length else file.bytes
            print(f"{file.url}: {f'{size / 2**20:.1f} MiB' if size else 'size not told'}", flush=True)
            with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=target.name) as bar:
                while chunk := answer.read(1 << 16):
                    out.write(chunk)
                    digest.update(chunk)
                    got += len(chunk)
                    bar.update(len(chunk))
        if size is not None and got != size:
            raise OSError(f"the transfer ended after {got} of {size} bytes; the same command tries again")
        _check(file, folder, digest.hexdigest())
        os.replace(partial, target)
    except urllib.error.HTTPError as error:
        raise OSError(f"{file.url}: {error.code} {error.reason}; see whether the publisher has moved it, and put it to {target}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{file.url}: cannot be reached ({error.reason}); with the file from elsewhere, put it to {target}") from None
    except (OSError, http.client.HTTPException) as error:  # broken off, disk full, wrong checksum
        raise OSError(f"{file.url}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    if file.sha256:
        print(f"{target}: {got} bytes, checksum as published")
    else:
        _remember(file, folder, digest.hexdigest(), got)
        print(f"{target}: {got} bytes; no checksum is known beforehand, so this copy's ({digest.hexdigest()[:16]}…) is kept in "
              f"{folder / RECORD} and later ones must equal it")  # fmt: skip


def _check(file: File, folder: Path, found: str) -> None:
    expected = _expected(file, folder)
    if expected is not None and found != expected:
        known = "that of the published file" if file.sha256 else "that of the copy fetched first"
        mend = "" if file.sha256 else f"; to accept the new one, take {file.path!r} out of {folder / RECORD}"
        raise OSError(f"checksum {found[:16]}… is not {expected[:16]}…, {known}: damaged on the way, or changed since{mend}")


def _expected(file: File, folder: Path) -> str | None:
    return file.sha256 or _recorded(folder).get(file.path, {}).get("sha256")


def _recorded(folder: Path) -> dict:
    path = folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise OSError(f"{path} is no JSON ({error}); remove it, and what is there is trusted anew") from None


def _remember(file: File, folder: Path, sha256: str, size: int) -> None:
    kept = {**_recorded(folder), file.path: {"sha256": sha256, "bytes": size, "url": file.url, "fetched": time.strftime("%Y-%m-%d")}}
    (folder / RECORD).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, pattern: str) -> None:
    """Members by their last name only, so that none can be written elsewhere."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.infolist():
                name = Path(member.filename).name
                if fnmatch(name, pattern) and not member.is_dir():
                    (archive.parent / name).write_bytes(bundle.read(member))
    except zipfile.BadZipFile as error:
        raise OSError(f"{archive} is no zip archive ({error}); remove it and fetch again") from None
