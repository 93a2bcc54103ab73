"""A stub for the code action "implement": put the cursor into it and ask your editor for code actions."""


def is_leap_year(year: int) -> bool:
    """Return True if `year` is a leap year of the Gregorian calendar."""
    raise NotImplementedError
