"""Paths as a report shows them: relative to the run folder, so that a report says nothing about the machine.

Pure text, no look at the disk. Not for opening files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# An absolute path starts the text or follows a space, a quote or a bracket. It may hold spaces: only its first part is
# matched, and whatever follows stays valid behind the relative form.
_ABSOLUTE = re.compile(r"""(?:(?<=^)|(?<=[\s'"(\[=]))/[^\s/:'"<>)]+(?:/[^\s/:'"<>)]+)*""")


def relative_to_run(text: str, folder: Path) -> str:
    """`text` with the run folder's own path taken off and every other absolute path made relative to that folder.

    `folder` may be relative or absolute; `text` may hold it in either form. URLs are left alone, but for `file://`.
    """
    absolute = os.path.abspath(folder)
    text = text.replace("file:///", "/")
    for own in dict.fromkeys((absolute, str(folder))):
        text = re.sub(rf"(?<![\w/.-]){re.escape(own)}/", "", text)
    return _ABSOLUTE.sub(lambda match: os.path.relpath(match.group(), absolute), text)


__all__ = ["relative_to_run"]
