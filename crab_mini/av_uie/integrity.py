"""Is this media file what its name says, and is all of it there? Answered from the first bytes and the box sizes.

Decoders are lenient: libsndfile reads half a wav without a word, FFmpeg plays the start of a cut mp4. A training set
must not be lenient: a file that lost its end is named, not padded. Nothing is decoded here; each format tells its own
length in a header, and `damage` compares that with the bytes on disk.
"""

from pathlib import Path
from struct import error as StructError
from struct import unpack

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
SOUNDS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
VIDEOS = {".mp4": "MP4", ".avi": "AVI", ".webm": "WEBM"}
FORMATS = PICTURES | SOUNDS | VIDEOS


def sniff(head: bytes) -> str | None:
    """The format (a value of FORMATS) that a file's first 16 bytes announce, or None."""
    if head[:4] in (b"RIFF", b"RF64"):
        return {b"WAVE": "WAV", b"AVI ": "AVI", b"WEBP": "WEBP"}.get(head[8:12])
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "MP4"
    starts = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"fLaC": "FLAC", b"OggS": "OGG",
              b"ID3": "MP3", b"\x1a\x45\xdf\xa3": "WEBM"}
    for start, name in starts.items():
        if head.startswith(start):
            return name
    # An MPEG frame: 11 set bits, then a layer that is not 0 (0 would be AAC).
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "MP3"
    return None


def damage(path: Path, kinds: dict[str, str]) -> str | None:
    """Why the file cannot be one of `kinds` (extension -> format), in a few words; None if nothing is wrong.

    Raises OSError if the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix not in kinds:
        return f"wrong extension '{path.suffix}': expected one of {' '.join(kinds)}"
    size = path.stat().st_size
    if size == 0:
        return "empty file (0 bytes)"
    with open(path, "rb") as file:
        found = sniff(file.read(16))
        if found != kinds[suffix]:
            return f"named {suffix} but holds {found or 'no known format'}"
        try:
            lost = _END_OF[found](file, size) if found in _END_OF else 0
        except (StructError, IndexError):
            lost = 1        # a header ran past the end of the file
    return "cut off: the file ends before its header says" if lost > 0 else None


def _png(file, size: int) -> int:
    offset, kind = 8, b""
    while kind != b"IEND":
        file.seek(offset)
        length, kind = unpack(">I4s", file.read(8))
        offset += 12 + length
    return offset - size


def _riff(file, size: int) -> int:
    """avi: the outermost chunk's length; 0 and all ones mean that it was written to a pipe."""
    file.seek(4)
    length = unpack("<I", file.read(4))[0]
    return 0 if length in (0, 0xFFFFFFFF) else length + 8 - size


def _wav(file, size: int) -> int:
    """Walk to the data chunk: many writers leave the outermost length wrong, but not this one."""
    offset, kind, length = 12, b"", 0
    while kind != b"data":
        file.seek(offset)
        kind, length = unpack("<4sI", file.read(8))
        offset += 8 + length + length % 2 * (kind != b"data")
    return 0 if length == 0xFFFFFFFF else offset - size


def _ogg(file, size: int) -> int:
    """The last page must carry the end-of-stream flag and be whole."""
    file.seek(max(0, size - 70000))     # a page holds at most 65307 bytes
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or not tail[page + 5] & 4:
        return 1
    segments = tail[page + 26]
    return page + 27 + segments + sum(tail[page + 27:page + 27 + segments]) - len(tail)


def _mp4(file, size: int) -> int:
    offset, kinds = 0, set()
    while offset < size:
        file.seek(offset)
        length, kind = unpack(">I4s", file.read(8))
        if length == 1:                 # a 64-bit length follows
            length = unpack(">Q", file.read(8))[0]
        if length == 0:                 # to the end of the file
            length = size - offset
        if length < 8:
            return 1
        offset += length
        kinds.add(kind)
    return offset - size if b"moov" in kinds else 1


def _webm(file, size: int) -> int:
    """The EBML header, then one Segment; each is an id, a variable-length length and its bytes."""
    offset = 4 + _ebml_length(file, 4)[0]
    offset += _ebml_length(file, 4)[1]
    width, length = _ebml_length(file, offset + 4)
    unknown = length == (1 << 7 * width) - 1       # a live recording leaves it open
    return 0 if unknown else offset + 4 + width + length - size


def _ebml_length(file, offset: int) -> tuple[int, int]:
    """(bytes that the length takes, its value): as many bytes as the first one has leading zero bits, plus one."""
    file.seek(offset)
    first = file.read(1)[0]
    width = 9 - first.bit_length()
    rest = file.read(width - 1)
    if width > 8 or len(rest) < width - 1:
        raise IndexError("no EBML length here")
    return width, int.from_bytes(bytes([first & (0xFF >> width)]) + rest, "big")


# Not here: formats whose decoders notice a lost end by themselves (JPEG, WEBP, BMP, FLAC, MP3 by its frame count).
_END_OF = {"PNG": _png, "AVI": _riff, "WAV": _wav, "OGG": _ogg, "MP4": _mp4, "WEBM": _webm}
