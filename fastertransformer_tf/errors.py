"""The exception of a user's mistake, which the programs answer with one sentence."""


class UserError(ValueError):
    """What a user gave is wrong: a flag, a file, a line of it, a value.

    The message is complete: it names the thing (the file and the line, the flag, the variable),
    says what it is and what is expected. Any other exception that leaves a program is a fault of
    the program.
    """
