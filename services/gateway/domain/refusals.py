"""How a request is told what is wrong with it."""

from shared.problems import Rejected


def invalid(field: str, message: str, advice: str) -> Rejected:
    """A malformed request, with the one field that is wrong."""
    error = {"field": field, "message": message, "advice": advice}
    return Rejected("validation_error", f"{field}: {message}", errors=[error])
