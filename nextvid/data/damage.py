"""What is wrong with a file that cannot be decoded: empty, cut short, not a film at all, or damaged inside."""

import os
import struct

from nextvid.data.locations import Bytes, Place, open_place

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
_EBML = b"\x1a\x45\xdf\xa3"
_END_MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
_ASF, _MPEG, _TRANSPORT = b"\x30\x26\xb2\x75", b"\x00\x00\x01", b"G@"
_MAGIC = (_EBML, *_END_MARKS, _ASF, _MPEG, _TRANSPORT, b"RIFF", b"BM", b"GIF8", b"FLV", b"OggS", b"YUV4")


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
        file.seek(0)
        head = file.read(64)
        if head[4:8] in _MP4_BOXES:
            return _mp4_cut_short(file, size)
        if head[:4] == b"RIFF" and len(head) >= 8:
            length = struct.unpack("<I", head[4:8])[0]
            return length != 0xFFFFFFFF and 8 + length > size
        if head[:4] == _EBML:
            return len(head) < 64 or _matroska_end(head) > size
        for magic, mark in _END_MARKS.items():
            if head.startswith(magic):
                file.seek(max(0, size - 65536))
                return mark not in file.read()
    return False


def _mp4_cut_short(file: Bytes, size: int) -> bool:
    """Walk the outermost boxes: the last must end inside the file, and one must be the index (``moov``)."""
    position, indexed = 0, False
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        indexed |= name == b"moov"
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
