"""JSON files of a data set: regular files inside its folder, of a bounded size, parsed or refused."""

import json
from pathlib import Path

from ..errors import DataError
from .paths import inside

MAX_BYTES = 500_000_000     # of a JSON file: two million annotations
MAX_SHARED = 10_000         # texts that are kept once, however often they stand in a file


class Shared:
    """Makes the dicts of a JSON file. Equal texts, such as the name of a clip, become one object."""

    def __init__(self):
        self.texts: dict[str, str] = {}

    def __call__(self, pairs: list[tuple]) -> dict:
        """The keys and values of one JSON object -> its dict."""
        made = {}
        for key, value in pairs:
            if isinstance(value, str):
                value = self.texts.get(value, value)
                if len(self.texts) < MAX_SHARED:
                    self.texts[value] = value
            made[key] = value
        return made


def read_json(path: Path, root: Path, kind: type, expected: str, advice: str = ""):
    """The content of a JSON file: a list or a dict (`kind`), in words `expected`.

    Raises DataError for all else: a missing file, a link out of `root`, a pipe, bytes that are no
    UTF-8, a cut or deeply nested file. advice: what to do about a damaged file.
    """
    inside(path, root, path, "file")
    try:
        if not path.is_file():
            reason = "not a regular file" if path.exists() else "missing"
            raise DataError(path, "file", reason + advice)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(path, "file", f"too large: {size} bytes, at most {MAX_BYTES} allowed")
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=Shared())
    except UnicodeDecodeError as error:
        raise DataError(path, "file", f"not UTF-8: byte {error.start}{advice}") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:       # also a number of thousands of digits
        raise DataError(path, "file", f"no valid JSON (cut off?): {error}{advice}") from error
    except OSError as error:
        raise DataError(path, "file", f"cannot be opened: {error.strerror}") from error
    if not isinstance(content, kind):
        found = type(content).__name__
        raise DataError(path, "file", f"expected {expected}, found {found}{advice}")
    return content
