"""Carry wheels, weights and data to a GPU machine that has no network and takes less than 64 MiB at a time.

Here, where there is a network; folders whose names start with gpu- in the checkout's root are ignored by git:

    python benchmarks/gpu/pack.py wheels polars polars-runtime-32 pydantic --python 3.12 --out gpu-kit/wheels
    cp -r DATA gpu-kit/data
    python benchmarks/gpu/pack.py pack gpu-kit/wheels gpu-kit/data --out gpu-parts

which writes gpu-parts/manifest.json and gpu-parts/part.000, part.001, ... There, when all of them have arrived in one
folder, a part per transfer (unpack needs Python 3.11 or later and nothing else):

    python benchmarks/gpu/pack.py unpack gpu-parts --into /tmp/kit
    python -m pip install --no-index --no-deps --target /tmp/site /tmp/kit/wheels/*.whl
    export PYTHONPATH=/tmp/site:src

The parts are the files one after the other, cut where a part is full; nothing in them is executed or unpickled. The
manifest holds the path, size and SHA-256 of every file, and the size and SHA-256 of every part. unpack checks all parts
before it writes anything, names those that are missing or damaged, and refuses paths that lead out of its folder; what
it writes appears at once, when every file has proven right.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import Parser
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
MIB = 1 << 20
PART_MIB = 58
"""Of the 64 MiB of a transfer; the rest is for the working tree, which travels each time."""
MAX_PART_MIB = 63
CHUNK = MIB
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)), "manylinux2014_x86_64")
"""Tags that pip takes literally, but for the last, which stands for the older ones too."""


class PackError(Exception):
    """What is wrong where, and what to do, in one line."""


def download_wheels(
    requirements: Sequence[str], out: Path, python: str, platforms: Sequence[str], constraint: Path | None
) -> list[str]:
    """Download wheels for another Python and platform, without what they depend on.

    Returns:
        Requirements of the wheels that none of them is for, e.g. ``pydantic 2.14.3: typing-extensions>=4.14``.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(out)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    command += ["--constraint", str(constraint)] if constraint else []
    if subprocess.run([*command, *requirements]).returncode:
        raise PackError(
            f"pip found no wheel for Python {python}: see its lines above; try another version or --platform"
        )
    return unmet_requirements(sorted(out.glob("*.whl")))


def unmet_requirements(wheels: Sequence[Path]) -> list[str]:
    """Requirements of the wheels that none of them is for; those of extras are not counted."""
    metadata = [_wheel_metadata(wheel) for wheel in wheels]
    carried = {_normalise(one["Name"]) for one in metadata}
    return [
        f"{one['Name']} {one['Version']}: {need}"
        for one in metadata
        for need in one.get_all("Requires-Dist") or []
        if "extra ==" not in need and _normalise(re.split(r"[^\w.-]", need.strip(), maxsplit=1)[0]) not in carried
    ]


def _wheel_metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pack(sources: Sequence[Path], out: Path, part_bytes: int) -> dict[str, Any]:
    """Write the files of ``sources`` (files, or folders with all that is below) as parts; the manifest.

    Each source keeps its own name: ``kit/wheels`` becomes ``wheels/...``.
    """
    files = list(_find_files(sources))
    if not files:
        raise PackError(f"nothing to pack: {', '.join(map(str, sources))} hold no file")
    _require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    with _Parts(out, part_bytes) as parts:
        for name, path in files:
            digest, size = hashlib.sha256(), 0
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    parts.write(chunk)
                    size += len(chunk)
            entries.append({"path": name, "bytes": size, "sha256": digest.hexdigest()})
    manifest = {"format": FORMAT, "parts": parts.written, "files": entries}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _find_files(sources: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    taken: set[str] = set()
    for source in sources:
        if not source.exists():
            raise PackError(f"{source} does not exist; give files or folders")
        base = source.resolve()
        if base.name in taken:
            raise PackError(f"two sources are called {base.name!r}; rename one, or pack the folder that holds both")
        taken.add(base.name)
        for path in sorted(base.rglob("*")) if base.is_dir() else [base]:
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise PackError(f"{path} is a link or no plain file; replace it by a copy of what it stands for")
            if path.is_file():
                yield _checked_path(path.relative_to(base.parent).as_posix()), path


class _Parts:
    """Writes one stream into files of ``part_bytes`` each; ``written`` describes them once closed."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._stream: io.BufferedWriter | None = None
        self._digest, self._size = hashlib.sha256(), 0
        self.written: list[dict[str, Any]] = []

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, chunk: bytes) -> None:
        while chunk:
            if self._stream is None:
                self._stream = (self._folder / f"part.{len(self.written):03d}").open("xb")
            now, chunk = chunk[: self._part_bytes - self._size], chunk[self._part_bytes - self._size :]
            self._stream.write(now)
            self._digest.update(now)
            self._size += len(now)
            if self._size == self._part_bytes:
                self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            name = Path(self._stream.name).name
            self.written.append({"name": name, "bytes": self._size, "sha256": self._digest.hexdigest()})
            self._stream, self._digest, self._size = None, hashlib.sha256(), 0


def unpack(folder: Path, into: Path) -> dict[str, Any]:
    """Join the parts in ``folder``, verify them and their files, and write the files to ``into``; the manifest.

    Raises:
        PackError: a part is missing or damaged, or the manifest is not one of ``pack``; ``into`` is left as it was.
    """
    manifest = _read_manifest(folder)
    _require_intact(folder, manifest["parts"])
    _require_empty(into)
    partial = into.with_name(f".{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        stream = _Joined(folder, manifest["parts"])
        for entry in manifest["files"]:
            _write_file(partial / entry["path"], stream, entry)
        if stream.read(1):
            raise PackError(f"{folder / MANIFEST} lists less than the parts hold; pack and send again")
        if into.exists():
            into.rmdir()
        partial.rename(into)
    except OSError as error:
        raise PackError(f"{into} could not be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise PackError(
                f"{path} has format {found['format']!r}, this pack.py reads {FORMAT}; use one checkout on both sides"
            )
        for entry in (*found["parts"], *found["files"]):
            if not (isinstance(entry["bytes"], int) and entry["bytes"] >= 0 and isinstance(entry["sha256"], str)):
                raise ValueError("sizes or sums are not as pack writes them")
        for part in found["parts"]:
            if "/" in _checked_path(part["name"]):
                raise ValueError("a part lies in a folder")
        for entry in found["files"]:
            _checked_path(entry["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackError(f"{path} is missing or no manifest ({error}); send it again") from None
    return dict(found)


def _checked_path(name: str) -> str:
    """A relative path with plain names, written with slashes; nothing that leads out of a folder."""
    plain = isinstance(name, str) and name and not re.search(r"[\\:\x00-\x1f]", name)
    if not plain or any(word in ("", ".", "..") for word in name.split("/")):
        raise PackError(f"refused the path {name!r}: it must be relative, with plain names between single slashes")
    return name


def _require_intact(folder: Path, parts: Sequence[dict[str, Any]]) -> None:
    missing = [part["name"] for part in parts if not (folder / part["name"]).is_file()]
    if missing:
        raise PackError(f"{len(missing)} of {len(parts)} parts are not in {folder}: {', '.join(missing)}; send them")
    damaged = []
    for part in parts:
        with (folder / part["name"]).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != part["sha256"]:
                damaged.append(part["name"])
    if damaged:
        raise PackError(
            f"damaged in {folder}: {', '.join(damaged)} (SHA-256 differs from the manifest); send them again"
        )


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackError(f"{folder} must be new or an empty folder; remove it or choose another")


class _Joined:
    """The parts as one stream."""

    def __init__(self, folder: Path, parts: Sequence[dict[str, Any]]) -> None:
        self._paths = [folder / part["name"] for part in parts]
        self._stream: Any = io.BytesIO()

    def read(self, size: int = -1) -> bytes:
        while not (chunk := self._stream.read(size)) and self._paths:
            self._stream.close()
            self._stream = self._paths.pop(0).open("rb")
        return bytes(chunk)


def _write_file(path: Path, stream: _Joined, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry["bytes"]
    with path.open("xb") as target:
        while left and (chunk := stream.read(min(left, CHUNK))):
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
    if left or digest.hexdigest() != entry["sha256"]:
        raise PackError(f"{entry['path']} is not what was packed (size or SHA-256); pack and send again")


def _part_mib(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_PART_MIB:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most {MAX_PART_MIB}, got {text}")
    return value


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="pack.py", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    wheels = commands.add_parser(
        "wheels",
        formatter_class=raw,
        help="download wheels for that machine's Python",
        description="Download wheels for that machine's Python, without their dependencies: name each one that the "
        "machine lacks.\nAfterwards it lists what the wheels require beyond each other; the machine must have that.",
    )
    wheels.add_argument("requirements", nargs="+", metavar="NAME[==VERSION]")
    wheels.add_argument("--out", type=Path, required=True, help="folder for the wheels")
    wheels.add_argument("--python", default="3.12", help="that machine's Python (default %(default)s)")
    wheels.add_argument("--platform", action="append", help=f"instead of {' '.join(PLATFORMS)}; may be repeated")
    wheels.add_argument("--constraint", type=Path, help="file of versions, e.g. constraints.txt")
    packing = commands.add_parser("pack", help="write files and folders as parts and a manifest")
    packing.add_argument("sources", nargs="+", type=Path, metavar="FILE_OR_FOLDER", help="each keeps its own name")
    packing.add_argument("--out", type=Path, required=True, help="new or empty folder for the parts")
    limit = f"size of a part, at most {MAX_PART_MIB} (default %(default)s)"
    packing.add_argument("--part-mib", type=_part_mib, default=PART_MIB, help=limit)
    unpacking = commands.add_parser("unpack", help="join the parts and verify every file; run there")
    unpacking.add_argument("parts", type=Path, help="folder with manifest.json and all parts")
    unpacking.add_argument("--into", type=Path, required=True, help="new or empty folder for the files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit code 2 and one line where something is wrong."""
    chosen = parse_arguments(arguments)
    try:
        if chosen.command == "wheels":
            platforms = chosen.platform or PLATFORMS
            needs = download_wheels(chosen.requirements, chosen.out, chosen.python, platforms, chosen.constraint)
            print("\n".join(["the machine itself must have:", *needs] if needs else ["nothing else is required"]))
            return 0
        if chosen.command == "pack":
            manifest = pack(chosen.sources, chosen.out, int(chosen.part_mib * MIB))
        else:
            manifest = unpack(chosen.parts, chosen.into)
    except (PackError, OSError) as error:
        print(f"pack.py: {error}", file=sys.stderr)
        return 2
    size = sum(entry["bytes"] for entry in manifest["files"]) / MIB
    parts = ", ".join(f"{part['name']} {part['bytes'] / MIB:.1f} MiB" for part in manifest["parts"])
    print(f"{chosen.command}ed {len(manifest['files'])} files, {size:.1f} MiB: {parts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
