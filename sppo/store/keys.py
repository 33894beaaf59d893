"""Keys of objects: names between single slashes, none of which leads up or out. Whatever wrote them, a store is not left."""

from sppo.errors import StoreError

NEVER = {"", ".", ".."}


def checked(key: str) -> str:
    """The key itself; the empty one is the root. Raises StoreError for one that another folder or no object may answer to."""
    if key and (NEVER & set(key.split("/")) or not key.isprintable()):
        raise StoreError(
            f"key {key!r} would leave the store; expected names between single slashes, none of them empty, '.' or '..': "
            "the record or the argument that names it is wrong, or hostile"
        )
    return key
