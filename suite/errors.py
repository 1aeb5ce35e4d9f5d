"""Errors a user can mend."""


class InputError(ValueError):
    """Bad input or usage. The message is one sentence: what is wrong, where, and what would be right."""
