"""The one exception that means: the user's input is at fault, and here is how to mend it."""


class UserError(Exception):
    """One sentence that names the thing at fault and the cure; programs print it and exit 2."""
