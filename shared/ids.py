"""The only source of new ids."""

from uuid import NAMESPACE_URL, UUID, uuid5

import uuid_utils.compat


def new_id() -> UUID:
    """A UUID version 7: unique, and sortable by its time of birth."""
    return uuid_utils.compat.uuid7()


def derived_id(*parts: object) -> UUID:
    """The same UUID (version 5) for the same parts: for ids that a repeat must find again."""
    return uuid5(NAMESPACE_URL, "tunewright:" + "/".join(str(part) for part in parts))
