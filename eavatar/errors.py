"""The one exception for problems that the user can mend."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with status 2; any other
    exception is a defect of the program and keeps its traceback.
    """
