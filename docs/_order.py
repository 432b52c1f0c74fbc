"""Order of the documentation's tabs: the way a newcomer reads, rather than the alphabet.

Promises: sections named here come first, in this order; any other section follows. Not for: choosing what is published.
"""

from __future__ import annotations

from typing import Any

ORDER = ("Concepts", "How to", "Results", "Reference", "Decisions")


def on_nav(nav: Any, **_: Any) -> Any:
    """Sort the top level of the navigation in place of mkdocs' alphabetical one; pages such as Home stay in front."""
    nav.items.sort(key=lambda item: (not item.is_page, ORDER.index(item.title) if item.title in ORDER else len(ORDER)))
    return nav
