"""Whether a media file is what its name says, and whether it is complete. Nothing is decoded here.

Decoders accept damaged files: libsndfile reads half of a wav file without a warning, FFmpeg plays
the start of a cut mp4. In a data set such a file would become padded or shortened data, so it is
refused instead. Each format states its own length in a header; `damage` compares that with the
length of the file. Formats whose decoders notice a missing end by themselves (JPEG, WEBP, BMP,
FLAC, MP3) are only checked for their first bytes.
"""

from collections.abc import Callable
from pathlib import Path
from struct import error as StructError
from struct import unpack
from typing import BinaryIO

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
SOUNDS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
VIDEOS = {".mp4": "MP4", ".avi": "AVI", ".webm": "WEBM"}
FORMATS = PICTURES | SOUNDS | VIDEOS

HEAD = 16                   # bytes that are enough to tell the format
OGG_PAGE = 70000            # bytes; more than the largest page of an ogg file, 65307
STARTS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"fLaC": "FLAC",
          b"OggS": "OGG", b"ID3": "MP3", b"\x1a\x45\xdf\xa3": "WEBM"}


def file_format(head: bytes) -> str | None:
    """The format, a value of FORMATS, that the first HEAD bytes of a file announce; None if it is
    unknown.
    """
    # RIFF and MP4 are containers: their kind stands after the first four bytes.
    if head[:4] in (b"RIFF", b"RF64"):
        return {b"WAVE": "WAV", b"AVI ": "AVI", b"WEBP": "WEBP"}.get(head[8:12])
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "MP4"
    for start, name in STARTS.items():
        if head.startswith(start):
            return name
    # An MPEG audio frame: 11 bits that are 1, and a layer that is not 0 (with layer 0 it is AAC).
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "MP3"
    return None


def damage(path: Path, kinds: dict[str, str]) -> str | None:
    """Why a file cannot be one of `kinds` (extension -> format), in a few words; None if nothing is
    wrong.

    Raises OSError if the file cannot be opened.
    """
    extension = path.suffix.lower()
    if extension not in kinds:
        return f"wrong extension '{path.suffix}': expected one of {' '.join(kinds)}"
    size = path.stat().st_size
    if size == 0:
        return "empty file (0 bytes)"
    with open(path, "rb") as file:
        actual = file_format(file.read(HEAD))
        if actual != kinds[extension]:
            return f"named {extension} but holds {actual or 'no known format'}"
        missing = 0
        if actual in MISSING_BYTES:
            try:
                missing = MISSING_BYTES[actual](file, size)
            except (StructError, IndexError):
                missing = 1                 # the file ends inside a header
    return "cut off: the file ends before its header says" if missing > 0 else None


# ---- how many bytes are missing at the end of a file of `size` bytes: positive if it is cut off

def missing_png(file: BinaryIO, size: int) -> int:
    """PNG: chunks (length, kind, data, checksum) up to the one of kind IEND."""
    offset, kind = 8, b""
    while kind != b"IEND":
        file.seek(offset)
        length, kind = unpack(">I4s", file.read(8))
        offset += 12 + length
    return offset - size


def missing_riff(file: BinaryIO, size: int) -> int:
    """AVI: the length of the outermost chunk. 0 and all ones mean that the file was written to a
    pipe.
    """
    file.seek(4)
    length = unpack("<I", file.read(4))[0]
    return 0 if length in (0, 0xFFFFFFFF) else length + 8 - size


def missing_wav(file: BinaryIO, size: int) -> int:
    """WAV: the end of the data chunk. Many writers state a wrong length in the outermost chunk, but
    not in this one.
    """
    offset, kind, length = 12, b"", 0
    while kind != b"data":
        file.seek(offset)
        kind, length = unpack("<4sI", file.read(8))
        # Chunks begin at even positions; nothing has to follow the data.
        offset += 8 + length + length % 2 * (kind != b"data")
    return 0 if length == 0xFFFFFFFF else offset - size


def missing_ogg(file: BinaryIO, size: int) -> int:
    """OGG: the last page must be complete and carry the flag `end of stream`."""
    file.seek(max(0, size - OGG_PAGE))
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or not tail[page + 5] & 4:
        return 1
    # A header of 27 bytes, the number of segments in its last one, their lengths, the segments.
    segments = tail[page + 26]
    lengths = tail[page + 27:page + 27 + segments]
    return page + 27 + segments + sum(lengths) - len(tail)


def missing_mp4(file: BinaryIO, size: int) -> int:
    """MP4: boxes (length, kind, data) up to the end of the file. The box `moov` must be there."""
    offset, kinds = 0, set()
    while offset < size:
        file.seek(offset)
        length, kind = unpack(">I4s", file.read(8))
        if length == 1:                 # the length follows in 64 bits
            length = unpack(">Q", file.read(8))[0]
        if length == 0:                 # the box reaches to the end of the file
            length = size - offset
        if length < 8:
            return 1
        offset += length
        kinds.add(kind)
    return offset - size if b"moov" in kinds else 1


def missing_webm(file: BinaryIO, size: int) -> int:
    """WEBM: the EBML header, then one Segment. Each is an id of 4 bytes, a length and data."""
    width, length = ebml_length(file, 4)
    segment = 4 + width + length
    width, length = ebml_length(file, segment + 4)
    unknown = length == (1 << 7 * width) - 1            # a live recording does not state its length
    return 0 if unknown else segment + 4 + width + length - size


def ebml_length(file: BinaryIO, offset: int) -> tuple[int, int]:
    """(bytes that the length takes, the length): the zero bits at the top of the first byte are as
    many as the bytes that follow it.

    Raises IndexError if there is no length at this place.
    """
    file.seek(offset)
    first = file.read(1)[0]
    width = 9 - first.bit_length()
    rest = file.read(width - 1)
    if width > 8 or len(rest) < width - 1:
        raise IndexError("no EBML length here")
    # Without the bit that marks the width.
    return width, int.from_bytes(bytes([first & (0xFF >> width)]) + rest, "big")


MISSING_BYTES: dict[str, Callable[[BinaryIO, int], int]] = {
    "PNG": missing_png, "AVI": missing_riff, "WAV": missing_wav, "OGG": missing_ogg,
    "MP4": missing_mp4, "WEBM": missing_webm}
