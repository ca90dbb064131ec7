"""Unpacks zip archives of numpy and torch in memory, up to the size limit."""

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
"""Maximum size of the central directory in bytes: Python's zipfile allocates an object per entry."""
LOCAL_BYTES = 30
STREAMED, DESCRIPTORS = 0x8, (12, 16, 20, 24)
"""Flag of a member whose checksum and sizes follow its content, and the possible lengths of that descriptor."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
HINT = "Save the checkpoint with numpy.savez or torch.save."


def unpack(data: bytes, name: str) -> dict[str, bytes]:
    """The content of each member of the archive, by name.

    The limit applies to the declared sizes; a member with a different size is rejected. Nothing is written to disk, and
    names that would leave the directory are rejected anyway.

    Raises:
        ZooError: the archive is damaged, too large when unpacked, or not in the form that numpy and torch write.
    """
    try:
        _check_end(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            for member in members:
                _check(member)
            if len({member.filename for member in members}) != len(members):
                refuse("two of its members have the same name.", HINT)
            if len(members) > MAX_LEAVES:
                refuse(f"it has more than {MAX_LEAVES:,} members.", HINT)
            if (total := sum(member.file_size for member in members)) > (limit := limits.max_bytes()):
                refuse(f"it unpacks to {total:,} bytes; the limit is {limit:,}.", limits.RAISE)
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
        refuse("it does not end like a zip archive.", HINT)
    if int.from_bytes(end[12:16], "little") > MAX_DIRECTORY:
        refuse("its directory of members is too large.", HINT)
    if data[-END_BYTES - 20 : -END_BYTES].startswith(b"PK\x06\x07"):
        _check_end64(data)


def _check_end64(data: bytes) -> None:
    """Apply the same bound to the 64-bit end record, which torch always writes and which takes precedence."""
    start = int.from_bytes(data[-END_BYTES - 12 : -END_BYTES - 4], "little")
    record = data[-END_BYTES - 76 : -END_BYTES - 20]
    if start != len(data) - END_BYTES - 76 or not record.startswith(b"PK\x06\x06"):
        refuse("it does not end like a zip archive.", HINT)
    if int.from_bytes(record[40:48], "little") > MAX_DIRECTORY:
        refuse("its directory of members is too large.", HINT)


def _check_layout(data: bytes, members: list[zipfile.ZipInfo], directory: int) -> None:
    """Reject an archive whose members do not fill it from the first byte to the directory.

    Otherwise an archive could hide data between members, begin with another archive, or unpack the same bytes under
    several names.
    """
    position, gaps = 0, (0,)
    for member in sorted(members, key=lambda member: member.header_offset):
        start = member.header_offset
        if start - position not in gaps:
            refuse("it has data between its members, or its members overlap.", HINT)
        name, extra = (int.from_bytes(data[start + at : start + at + 2], "little") for at in (26, 28))
        position = start + LOCAL_BYTES + name + extra + member.compress_size
        gaps = DESCRIPTORS if member.flag_bits & STREAMED else (0,)
    if directory - position not in gaps:
        refuse("it has data between its members and its end.", HINT)


def _check(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not name.isprintable() or len(name) > MAX_TEXT or name.endswith("/"):
        refuse(f"it has a member called {name[:MAX_TEXT]!r}.", HINT)
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name:
        refuse(f"it has a member called {name!r}, which leaves the directory.", HINT)
    if member.flag_bits & ENCRYPTED or member.compress_type not in METHODS:
        refuse(f"its member {name} is encrypted, or compressed with an unsupported method.", HINT)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)
    if len(content) != member.file_size:
        refuse(f"its member {member.filename} does not have its declared size.", HINT)
    return content
