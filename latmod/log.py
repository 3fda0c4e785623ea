"""Keep records in a file, one JSON line each, so that a kill or a full disk loses none that was appended."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from latmod.errors import DatasetError

R = TypeVar("R")


class Log:
    """Append records to a file, each on disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        """Open the log and cut off a last line that a kill has torn."""
        self._path = path
        try:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            self._end = _end_of_last_line(self._file)
            os.ftruncate(self._file, self._end)
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}") from error

    def append(self, record: msgspec.Struct) -> None:
        """Write one line and flush it to disk, whole or not at all; raise DatasetError where that fails."""
        line = msgspec.json.encode(record) + b"\n"
        try:
            written = os.pwrite(self._file, line, self._end)
            if written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise DatasetError(
                f"{self._path}: {error.strerror}; free some space, then start the same command again"
            ) from error
        self._end += len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Return the records of a log in the order they were stored; a torn last line is passed over."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        lines.pop()
    decoder = msgspec.json.Decoder(kind)
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise DatasetError(f"{path}, line {number}: {error}; restore the file or remove the line") from error
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; raise DatasetError where that fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatasetError(f"{path}: {error.strerror}") from error


def _end_of_last_line(file: int) -> int:
    """Return the length of the file up to and with its last newline."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
