"""Text for people: numbers in a fixed style, and untrusted names made harmless to show."""

import math
import unicodedata


def printable(text: str) -> str:
    r"""The text on one line, each character that doesn't print replaced by U+FFFD.

    Class and file names come from the data. Control characters would drive a terminal, direction
    marks would reorder a table, and lone surrogates (undecodable file names) can't be encoded.

    >>> printable("cat\x1b[31m")
    'cat�[31m'
    """
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def columns(text: str) -> int:
    """The number of fixed-width columns that a text takes: wide East Asian characters take two.

    >>> columns("cat"), columns("猫")
    (3, 2)
    """
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def shorten(text: str, limit: int) -> str:
    """The printable text in at most `limit` columns (>= 3), an ellipsis in place of its middle.

    Both ends stay, because names that share a prefix differ at their end.

    >>> shorten("runs/quickstart/seed1", 12)
    'runs/q…seed1'
    """
    text = printable(text)
    if columns(text) <= limit:
        return text
    head, tail = text, text[len(text) // 2 :]
    while columns(tail) > (limit - 1) // 2:
        tail = tail[1:]
    while columns(head) > limit - 1 - columns(tail):
        head = head[:-1]
    return f"{head}…{tail}"


def score(value: float) -> str:
    """A score between -1 and 1 with four decimals."""
    return f"{value:.4f}"


def loss(value: float) -> str:
    """A loss with four significant digits.

    >>> loss(0.00131234), loss(1.45), loss(2305.4)
    ('0.001312', '1.450', '2305')
    """
    return f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """A time span in the unit that suits its size.

    >>> duration(0.0312), duration(31.04), duration(2890), duration(9000)
    ('0.03 s', '31.0 s', '48 min 10 s', '2 h 30 min')
    """
    if not math.isfinite(seconds) or seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
