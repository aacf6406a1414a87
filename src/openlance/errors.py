"""The one exception that a user of the commands may see."""

from __future__ import annotations


class UserError(ValueError):
    """Something a user can cause and mend: one sentence that says what is wrong, what was expected, what to type next.

    Commands print it and exit with code 2; everything else that is raised is a defect of this package.
    """
