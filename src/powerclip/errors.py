"""The errors a user can mend."""


class PowerclipError(Exception):
    """Something the user can mend; its one-line message says what came, what was expected and what to do."""


class RunFailedError(PowerclipError):
    """Work that began as asked and could not be finished (the commands exit with 1 instead of 2)."""
