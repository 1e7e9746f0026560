"""Cases that are known to fail: seed -> why. A case in this list that passes is a failure, too."""

KNOWN: dict[int, str] = {}
