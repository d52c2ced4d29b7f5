"""The exceptions that end a run otherwise than by a mistake of the program."""


class UserError(Exception):
    """One sentence that names the thing at fault and the cure; programs print it and exit 2."""


class Interrupted(Exception):
    """The run was told to stop, and what it had is saved: the same command goes on."""


def printable(name: str) -> str:
    r"""A name from outside as one line of valid Unicode: everything that doesn't print is escaped.

    File names that aren't UTF-8 reach Python as lone surrogates, which no JSON or HTML file can
    hold; line breaks and direction marks would garble a listing.

    Example:
      >>> printable("caf\udce9\n")
      'caf\\udce9\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def reason(error: BaseException) -> str:
    """The system's words for an error, or its first line, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(getattr(error, "strerror", None) or lines[0][:200]).rstrip(".")
