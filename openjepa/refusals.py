"""The class of our refusals: what the user can mend, told apart from what is wrong in the program."""


class Refusal(ValueError):
    """Something that cannot be done as asked; the message names the setting or file, its value and what would fit.

    The command line prints the message alone and exits with 2. Every other error is a fault of the program: it keeps its
    traceback and exits with 1.
    """
