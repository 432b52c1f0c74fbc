"""Documents in a conversation: a PDF or a list of pages becomes consecutive images, page after page.

It promises that a document reads as if each page had been given as an image, which is how the model saw documents in training.
Pages are drawn by eagle_data (pypdfium2, extra `pdf`) and only when their pixels are asked for. Nothing here loads a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Message = Mapping[str, Any]


def document_pages(source: Any, pages: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """Image items of a document, one a page, for the content of a message.

    Args:
        source: path of a PDF; or a list of pictures in any form an image item takes, one a page.
        pages: page numbers from 1, in the order wanted; None means all.

    Raises:
        ValueError: no PDF, an empty document, or a page it does not have.
    """
    if isinstance(source, (list, tuple)):
        count, page_of = len(source), lambda number: source[number - 1]
    else:
        path = str(source).removeprefix("file://")
        count, page_of = _page_count(path), lambda number: f"{path}::{number}"
    if count == 0:
        raise ValueError("a document given as a list of pages is empty")
    wanted = list(range(1, count + 1)) if pages is None else list(pages)
    absent = [number for number in wanted if not 1 <= number <= count]
    if absent or not wanted:
        raise ValueError(f"a document of {count} page(s) was asked for pages {wanted}; ask for some of 1 to {count}")
    return [{"type": "image", "image": page_of(number)} for number in wanted]


def expand_documents(conversation: Sequence[Any]) -> list[Any]:
    """One conversation or several with every `{"type": "document", "document": …}` item replaced by its pages.

    A document item takes `document` (see `document_pages`) and optionally `pages`. What has none is returned as it is.
    """
    if conversation and not isinstance(conversation[0], Mapping):
        return [expand_documents(each) for each in conversation]
    return [_expanded(message) for message in conversation]


def _expanded(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str) or not any(_is_document(item) for item in content):
        return message
    items: list[Any] = []
    for item in content:
        if not _is_document(item):
            items.append(item)
        elif item.get("document") is None:
            raise ValueError(f"a document item has no document: {dict(item)}; give 'document'")
        else:
            items += document_pages(item["document"], item.get("pages"))
    return {**message, "content": items}


def _is_document(item: Any) -> bool:
    return isinstance(item, Mapping) and (item.get("type") == "document" or "document" in item)


def _page_count(path: str) -> int:
    from eagle_data.errors import MediaError
    from eagle_data.pdf_pages import PdfReader, is_pdf

    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror})", "Check the path") from error
    if not is_pdf(head):
        raise MediaError(path, "is not a PDF", "Give a PDF, or a list of pictures, one a page")
    return len(PdfReader(path, path, 1.0).times) - 1
