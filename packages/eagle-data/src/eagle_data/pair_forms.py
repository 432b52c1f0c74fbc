"""Records that hold questions and answers in pairs, as turns: query and response, Alpaca's instruction, lists of pairs.

`turns_of_pairs` is pure: a record in, its turns in Eagle's form out, or None where the record has no such form. Not for media or
for speakers' names: what is made here goes on through `record_forms`. A pair that is half empty is left as it is, so that it
is refused there by its turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagle_data.errors import SampleError

_QUESTIONS = ("human", "user", "query", "prompt", "question")
_ANSWERS = ("assistant", "gpt", "response", "answer")


def turns_of_pairs(record: Mapping[str, Any], where: str) -> list[Any] | None:
    """The turns of a record without "conversations" and "messages"; None where it has none of the forms below.

    - `conversation`: turns, or pairs `{"human": …, "assistant": …}`; `texts`: pairs `{"user": …, "assistant": …}`
    - `query`, `response` and `history`, a list of `[query, response]`
    - `instruction`, `input` (behind it, on a line of its own), `output` and `history`

    Raises SampleError for a history that is no list of pairs.
    """
    for key in ("conversation", "texts"):
        listed = record.get(key)
        if isinstance(listed, list) and listed and all(isinstance(item, Mapping) for item in listed):
            return [turn for item in listed for turn in _turns_of_item(item)]
    if "response" in record and "query" in record:
        question, answer = record["query"], record["response"]
    elif "instruction" in record and "output" in record:
        question, answer = record["instruction"], record["output"]
        more = record.get("input")
        if isinstance(more, str) and more.strip() and isinstance(question, str):
            question = f"{question}\n{more}"
    else:
        return None
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise SampleError(where, '"history" must be a list of [question, answer] pairs', "bad turn")
    return [turn for pair in (*history, (question, answer)) for turn in _pair(*pair)]


def _turns_of_item(item: Mapping[str, Any]) -> list[Any]:
    question = next((key for key in _QUESTIONS if key in item), None)
    answer = next((key for key in _ANSWERS if key in item), None)
    if question is None or answer is None or "from" in item or "role" in item:
        return [item]
    system = item.get("system")
    first = [{"from": "system", "value": system}] if isinstance(system, str) and system.strip() else []
    about = {key: value for key, value in item.items() if key not in (question, answer, "system")}
    return [*first, {**about, "from": "human", "value": item[question]}, {**about, "from": "gpt", "value": item[answer]}]


def _pair(question: Any, answer: Any) -> list[Any]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
