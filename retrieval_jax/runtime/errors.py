"""The exceptions that end a run without being a bug, and words for any other."""


class UserError(Exception):
    """One sentence that names the thing at fault and the cure; the command exits with 2."""


class Interrupted(Exception):
    """The run was told to stop and has saved its state: the same command resumes it."""


def printable(name: str) -> str:
    r"""An untrusted name as one line of valid Unicode, with unprintable characters escaped.

    File names that aren't UTF-8 reach Python as lone surrogates, which no JSON or HTML file can
    hold; line breaks and direction marks would garble a listing.

    Example:
      >>> printable("caf\udce9\n")
      'caf\\udce9\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def reason(error: BaseException) -> str:
    """The system's message for an error, or its first line, short enough for a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(getattr(error, "strerror", None) or lines[0][:200]).rstrip(".")
