"""The names that S3 servers give to bytes: an object's MD5, or of one in parts the MD5 of the parts' MD5s and their number."""

from hashlib import md5
from pathlib import Path

PARTS = 10_000
"""Of an upload, at most; a larger file's parts are larger."""
BLOCK_BYTES = 1 << 20


def etags(path: Path, part_bytes: int) -> set[str]:
    """What a server may name a file after an upload, whole or in parts of this size.

    Source: the ETag of AWS's S3 for objects without encryption or with SSE-S3, which Ceph, MinIO and others took over."""
    part_bytes = max(part_bytes, -(-path.stat().st_size // PARTS))
    digests: list[bytes] = []
    with path.open("rb") as stream:
        while True:
            digest, left = md5(usedforsecurity=False), part_bytes
            while block := stream.read(min(left, BLOCK_BYTES)):
                digest.update(block)
                left -= len(block)
            if left == part_bytes and digests:
                break
            digests.append(digest.digest())
            if left:
                break
    together = md5(b"".join(digests), usedforsecurity=False)
    whole = {digests[0].hex()} if len(digests) == 1 else set()
    return {*whole, f"{together.hexdigest()}-{len(digests)}"}
