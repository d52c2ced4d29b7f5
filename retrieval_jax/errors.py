"""The exceptions that end a run otherwise than by a mistake of the program."""


class UserError(Exception):
    """One sentence that names the thing at fault and the cure; programs print it and exit 2."""


class Interrupted(Exception):
    """The run was told to stop, and what it had is saved: the same command goes on."""
