# pyright: basic
"""Keep model libraries' progress bars and notices out of the logs; their errors still come through."""

import diffusers
import transformers


def quieten_libraries() -> None:
    """Errors only, no bars."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
