"""Manifests that take far more memory than their files show."""

from __future__ import annotations

from batchverify.errors import PreflightError

# What no list of pairs reaches, as its rows differ: 250 bytes in memory for each byte of the file, and more than 1 GiB.
_MAX_EXPANSION, _LARGE_BYTES = 250, 2**30


def out_of_memory(path: str) -> str:
    """Returns a sentence about a manifest file whose rows do not fit into memory."""
    return f"{path}: there is not enough memory for its rows; run the manifest in smaller files."


def refuse_absurd_expansion(path: str, stored_bytes: int, expanded_bytes: float) -> None:
    """Refuses a file that is far larger in memory than any list of pairs of its size.

    Args:
        path: The file.
        stored_bytes: Its size.
        expanded_bytes: How large its rows are once they are decompressed.

    Raises:
        PreflightError: With both sizes.
    """
    if expanded_bytes > max(_LARGE_BYTES, _MAX_EXPANSION * stored_bytes):
        raise PreflightError(
            f"{path}: its {stored_bytes / 2**20:.1f} MiB expand to about {expanded_bytes / 2**30:.1f} GiB, as no list of pairs "
            "does; check where the file comes from, and write it uncompressed if it is right."
        )
