"""Documents: pages of a PDF or a list of pictures as consecutive images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from eagle_model.documents import document_pages, expand_documents
from PIL import Image

SHADES = (40, 120, 200)


def page(shade: int) -> Image.Image:
    return Image.new("RGB", (64, 96), (shade, shade, shade))


def ask(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


@pytest.fixture
def pdf(tmp_path: Any) -> str:
    pytest.importorskip("pypdfium2", reason="pages are drawn by the extra eagle-data[pdf]")
    first, *others = (page(shade) for shade in SHADES)
    first.save(tmp_path / "paper.pdf", save_all=True, append_images=others)
    return str(tmp_path / "paper.pdf")


OPTIONS = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
QUESTION = {"type": "text", "text": "What does it say?"}


def test_a_list_of_pages_reads_like_the_same_images_one_after_the_other(processor: Any):
    pages = [page(shade) for shade in SHADES]
    as_document = processor.apply_chat_template(ask({"type": "document", "document": pages}, QUESTION), **OPTIONS)
    images = [{"type": "image", "image": picture} for picture in pages]
    as_images = processor.apply_chat_template(ask(*images, QUESTION), **OPTIONS)
    assert set(as_document) == set(as_images)
    assert all(torch.equal(as_document[key], as_images[key]) for key in as_images)
    assert "<image-1><image-2><image-3>What" in processor.apply_chat_template(ask({"document": pages}, QUESTION))


def test_the_pages_of_a_pdf_come_in_order_and_on_white(processor: Any, pdf: str):
    images, videos = processor.process_vision_info(ask({"type": "document", "document": pdf}, QUESTION))
    assert videos is None
    assert [int(np.asarray(image)[image.height // 2, image.width // 2, 0]) for image in images] == pytest.approx(SHADES, abs=3)


def test_pages_are_chosen_by_number_and_shown_in_that_order(processor: Any, pdf: str):
    item = {"type": "document", "document": f"file://{pdf}", "pages": [3, 1]}
    images, _ = processor.process_vision_info([ask(item), ask(item)])
    assert [int(np.asarray(image)[5, 5, 0]) for image in images] == pytest.approx([200, 40] * 2, abs=3)
    assert [entry["image"] for entry in document_pages(pdf, [2])] == [f"{pdf}::2"]


def test_a_single_page_can_be_named_as_an_image(processor: Any, pdf: str):
    images, _ = processor.process_vision_info(ask({"type": "image", "image": f"{pdf}::2"}))
    assert int(np.asarray(images[0])[5, 5, 0]) == pytest.approx(120, abs=3)


def test_conversations_without_documents_are_left_as_they_are():
    conversation = [{"role": "system", "content": "Be brief."}, *ask(QUESTION, "and more")]
    assert expand_documents(conversation) == conversation
    assert expand_documents([conversation, conversation]) == [conversation, conversation]


def test_documents_that_cannot_be_shown_are_errors(processor: Any, pdf: str, tmp_path: Any):
    (tmp_path / "a.txt").write_text("text")
    for item, words in (
        ({"type": "document"}, "has no document"),
        ({"type": "document", "document": []}, "is empty"),
        ({"type": "document", "document": pdf, "pages": [4]}, "of 3 page"),
        ({"type": "document", "document": pdf, "pages": []}, "of 3 page"),
        ({"type": "document", "document": str(tmp_path / "a.txt")}, "is not a PDF"),
        ({"type": "document", "document": "/nowhere/a.pdf"}, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            processor.process_vision_info(ask(item))
