"""What is wrong with a file that cannot be decoded: empty, cut short, not a film at all, or damaged inside."""

import os
import struct

from nextvid.data.locations import Bytes, Place, open_place

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
_EBML = b"\x1a\x45\xdf\xa3"
_JPEG, _PNG, _START_OF_SCAN = b"\xff\xd8\xff", b"\x89PNG", 0xDA
_ASF, _MPEG, _TRANSPORT = b"\x30\x26\xb2\x75", b"\x00\x00\x01", b"G@"
_MAGIC = (_EBML, _JPEG, _PNG, _ASF, _MPEG, _TRANSPORT, b"RIFF", b"BM", b"GIF8", b"FLV", b"OggS", b"YUV4")


def reason_of(place: Place) -> str:
    """Why a file that a decoder gave up on is broken."""
    try:
        with open_place(place) as file:
            head = file.read(16)
        if not head:
            return "empty"
        if is_cut_short(place):
            return "truncated"
    except PermissionError:
        return "denied"
    except OSError:
        return "unreadable"
    return "unreadable" if head.startswith(_MAGIC) or head[4:8] in _MP4_BOXES else "not_media"


def is_cut_short(place: Place) -> bool:
    """Whether the file ends before its own structure says; False for formats that do not say."""
    with open_place(place) as file:
        size = file.seek(0, os.SEEK_END)
        if place.length is not None and size < place.length:
            return True
        return _ends_before_its_structure(file, size)


def _ends_before_its_structure(file: Bytes, size: int) -> bool:
    file.seek(0)
    head = file.read(64)
    if head[4:8] in _MP4_BOXES:
        return _mp4_cut_short(file, size)
    if head[:4] == b"RIFF" and len(head) >= 8:
        length = struct.unpack("<I", head[4:8])[0]
        return length != 0xFFFFFFFF and 8 + length > size
    if head[:4] == _EBML:
        return len(head) < 64 or _matroska_end(head) > size
    if head.startswith(_JPEG):
        return _jpeg_cut_short(file)
    return head.startswith(_PNG) and _png_cut_short(file, size)


def _jpeg_cut_short(file: Bytes) -> bool:
    """Whether no end mark follows where the picture's own data begin; what phones put behind it does not count."""
    position = 2
    while True:
        file.seek(position)
        mark = file.read(4)
        if len(mark) < 4 or mark[0] != 0xFF:
            return len(mark) < 4
        position += 2 + int.from_bytes(mark[2:], "big")
        if mark[1] == _START_OF_SCAN:
            file.seek(position)
            return b"\xff\xd9" not in file.read()


def _png_cut_short(file: Bytes, size: int) -> bool:
    """Walk the chunks: the last, IEND, must end inside the file."""
    position = 8
    while position + 12 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        position += 12 + length
        if name == b"IEND":
            return position > size
    return True


def _mp4_cut_short(file: Bytes, size: int) -> bool:
    """Walk the outermost boxes: the last must end inside the file, and one must be the index (``moov``).

    What follows both the index and the frames (``mdat``) and is no box is no part of the film.
    """
    position, indexed, framed = 0, False, False
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        if indexed and framed and name not in _MP4_BOXES:
            return False
        indexed |= name == b"moov"
        framed |= name in (b"mdat", b"moof")
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length == 0:
            return not indexed
        if length < 8:
            return False
        position += length
    return position > size or not indexed


def _matroska_end(head: bytes) -> int:
    """Where the segment ends, in bytes; 0 where the file does not say."""
    length, start = _matroska_length(head, 4)
    segment = start + length
    if head[segment : segment + 4] != b"\x18\x53\x80\x67" or len(head) < segment + 12:
        return 0
    length, start = _matroska_length(head, segment + 4)
    return start + length if length else 0


def _matroska_length(head: bytes, position: int) -> tuple[int, int]:
    """An element's length (0 where unknown) and where its content starts."""
    width = 9 - head[position].bit_length()
    value = int.from_bytes(head[position : position + width], "big") & ((1 << 7 * width) - 1)
    return (0 if value == (1 << 7 * width) - 1 else value), position + width
