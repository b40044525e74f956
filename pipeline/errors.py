"""The two ways a user's run can go wrong. Tools turn the first into exit code 2, the second into exit code 1."""


class ConfigError(ValueError):
    """The call is wrong: a flag, a path, a combination. Says what, what was got, and what to do."""


class DataError(RuntimeError):
    """The call is right but the data is not: names the file or the shard and key."""


class PictureError(DataError):
    """One picture of those given cannot be decoded. The caller, who knows its name, says it."""

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row
        self.reason = reason


def shown(text: object) -> str:
    """What a file holds, for a message: on one line, escaped where need be, and only its beginning where it is long."""
    text = str(text)[:5000]
    return text if text.isprintable() and len(text) <= 200 else f"{text[:100]!r}{'…' if len(text) > 100 else ''}"
