"""The two ways in which a run ends early that are nobody's bug."""


class UserError(Exception):
    """A mistake that its maker can mend; the text says what was got, where, and the remedy."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not an `Exception`, so that it ends a whole sweep and not only its current job."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
