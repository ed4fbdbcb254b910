"""How many images hold more than the colours of one upright picture, in words."""

from __future__ import annotations

_RULES = {
    "turned": "to be turned by EXIF (--orientation)",
    "transparent": "transparent (--alpha)",
    "multi_frame": "of several frames (the first is used)",
}


def describe_traits(traits: dict[str, int]) -> str:
    """Returns how many images have which traits, each with the option that treats it; an empty text for none.

    Args:
        traits: The section `image_traits` of `_summary.json`.
    """
    return ", ".join(f"{traits[name]:,} {rule}" for name, rule in _RULES.items() if traits.get(name))
