"""Zip archives, as numpy and torch write them, unpacked in memory within a stated bound."""

from __future__ import annotations

import io
import zipfile
import zlib

from pylo_zoo import limits
from pylo_zoo.errors import ZooError
from pylo_zoo.formats.arrays import MAX_LEAVES, MAX_TEXT, refuse

SIGNATURE = b"PK\x03\x04"
END, END_BYTES = b"PK\x05\x06", 22
MAX_DIRECTORY = 2 * 1024 * 1024
"""Largest central directory: Python's zipfile makes an object of every entry."""
LOCAL_BYTES = 30
STREAMED, DESCRIPTORS = 0x8, (12, 16, 20, 24)
"""Flag of a member whose checksum and sizes follow its content, and how many bytes these take."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
HINT = "Only archives as numpy.savez and torch.save write them are read."


def unpack(data: bytes, name: str) -> dict[str, bytes]:
    """The members of the archive by name.

    Sizes are those that the archive declares; a member that turns out to have another one is refused. Nothing is
    written anywhere, so that a name cannot lead outside; one that would is refused all the same.

    Raises:
        ZooError: the archive is damaged, too large unpacked, or not as numpy and torch write them.
    """
    try:
        _check_end(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            for member in members:
                _check(member)
            if len({member.filename for member in members}) != len(members):
                refuse("two of its members have one name.", HINT)
            if len(members) > MAX_LEAVES:
                refuse(f"it has more than {MAX_LEAVES:,} members.", HINT)
            if (total := sum(member.file_size for member in members)) > (limit := limits.max_bytes()):
                refuse(f"it unpacks to {total:,} bytes; up to {limit:,} are read.", limits.RAISE)
            _check_layout(data, members, archive.start_dir)
            return {member.filename: _content(archive, member) for member in members}
    except ZooError as error:
        raise ZooError(f"{name}: {error.message}", error.hint) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError, IndexError) as error:
        raise ZooError(
            f"{name} is not a complete zip archive ({type(error).__name__}).",
            "Download or copy it again, and compare its sha256 with the publisher's.",
        ) from error


def _check_end(data: bytes) -> None:
    end = data[-END_BYTES:]
    if not end.startswith(END) or end[20:] != b"\0\0":
        refuse("it does not end as a zip archive does.", HINT)
    if int.from_bytes(end[12:16], "little") > MAX_DIRECTORY:
        refuse("it lists far too many members.", HINT)
    if data[-END_BYTES - 20 : -END_BYTES].startswith(b"PK\x06\x07"):
        _check_end64(data)


def _check_end64(data: bytes) -> None:
    """torch always writes the 64-bit end, which then counts; the same bound for it."""
    start = int.from_bytes(data[-END_BYTES - 12 : -END_BYTES - 4], "little")
    record = data[-END_BYTES - 76 : -END_BYTES - 20]
    if start != len(data) - END_BYTES - 76 or not record.startswith(b"PK\x06\x06"):
        refuse("it does not end as a zip archive does.", HINT)
    if int.from_bytes(record[40:48], "little") > MAX_DIRECTORY:
        refuse("it lists far too many members.", HINT)


def _check_layout(data: bytes, members: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse an archive whose members do not fill it from its first byte to its directory.

    An archive may otherwise hide data between its members, begin with another archive, or unpack the same bytes under
    several names.
    """
    position, gaps = 0, (0,)
    for member in sorted(members, key=lambda member: member.header_offset):
        start = member.header_offset
        if start - position not in gaps:
            refuse("there is data between its members, or members overlap.", HINT)
        name, extra = (int.from_bytes(data[start + at : start + at + 2], "little") for at in (26, 28))
        position = start + LOCAL_BYTES + name + extra + member.compress_size
        gaps = DESCRIPTORS if member.flag_bits & STREAMED else (0,)
    if directory - position not in gaps:
        refuse("there is data between its members and its end.", HINT)


def _check(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not name.isprintable() or len(name) > MAX_TEXT or name.endswith("/"):
        refuse(f"it has a member called {name[:MAX_TEXT]!r}.", HINT)
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name:
        refuse(f"it has a member called {name!r}, which would lead outside.", HINT)
    if member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
        refuse(f"its member {name} is encrypted, or compressed in a way that is not read.", HINT)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)
    if len(content) != member.file_size:
        refuse(f"its member {member.filename} has another size than it declares.", HINT)
    return content
