# pyright: basic
import json
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.training.text_datasets import TextDatasetSpec
from trainer.failures import AttemptFailed
from trainer.llm.held_out import split_rows
from trainer.llm.rows import Message, Row, read_rows

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
PAIR = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}


def dataset(**fields: Any) -> TextDatasetSpec:
    return TextDatasetSpec(id="d", instance_data_dir="/data", **fields)


def write(folder: Path, name: str, *rows: Any) -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def refusal(source: Path, method: Any = "sft", **fields: Any) -> str:
    with pytest.raises(AttemptFailed) as failed:
        read_rows(dataset(**fields), source, method)
    assert failed.value.kind == "bad_data"
    return failed.value.message


@pytest.mark.parametrize(
    ("row", "found", "prompt", "answer"),
    [
        ({"text": "once"}, "text", "", "once"),
        (CHAT, "messages", (Message("user", "Hi"),), (Message("assistant", "Hello."),)),
        (
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            "instruction",
            (Message("user", "Add.\n\n1 1"),),
            (Message("assistant", "2"),),
        ),
        (
            {"instruction": "Wave.", "output": "o/"},
            "instruction",
            (Message("user", "Wave."),),
            (Message("assistant", "o/"),),
        ),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", "a", "b"),
    ],
)
def test_each_format_is_found_and_read(tmp_path: Path, row: Any, found: str, prompt: Any, answer: Any) -> None:
    rows = read_rows(dataset(), write(tmp_path, "a.jsonl", row), "sft")
    assert rows.formats == {"a.jsonl": found}
    assert (rows.rows[0].prompt, rows.rows[0].answers) == (prompt, (answer,))
    assert rows.rows[0].place == "a.jsonl:1"


def test_preferences_are_strings_or_lists_of_turns(tmp_path: Path) -> None:
    listed = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    rows = read_rows(dataset(), write(tmp_path, "a.jsonl", PAIR, listed), "dpo").rows
    assert rows[0].answers == (" 4", " 5")
    assert rows[1].answers == ((Message("assistant", "Hello."),), (Message("assistant", "No."),))


def test_files_of_a_folder_may_differ_in_format_and_come_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write(tmp_path, "b.jsonl", CHAT, "", CHAT)
    write(tmp_path / "more", "a.ndjson", {"text": "once"})
    write(tmp_path, "notes.txt", "not a row")
    rows = read_rows(dataset(), tmp_path, "sft")
    assert [row.place for row in rows.rows] == ["b.jsonl:1", "b.jsonl:3", "more/a.ndjson:1"]
    assert rows.duplicates == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": "cut', "it is not JSON"),
        ('["text"]', "a JSON object is meant, not a list"),
        ({"instruction": "Add."}, "output missing"),
        ({"prompt": "a", "chosen": "b"}, "rejected missing"),
        ({"conversations": []}, "its members are conversations; known are"),
        ({"text": "  "}, "text is empty"),
        ({"text": 7}, "text is a number, not text"),
        ({"messages": "Hi"}, "messages is text, not a list of messages"),
        ({"messages": []}, "messages is an empty list, not a list of messages"),
        ({"messages": [{"role": "bot", "content": "Hi"}]}, "messages[0].role is 'bot'; known are system, user"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is null, not text"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages has no assistant turn to learn from"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "must all be text, or all lists"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]},
         "completion[0].role is user; an answer begins with the assistant"),
        (PAIR, "are for DPO (training.method dpo)"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    message = refusal(write(tmp_path, "a.jsonl", "", row))
    assert "a.jsonl:2: " in message
    assert reason in message


def test_dpo_refuses_other_rows_and_equal_answers(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "a.jsonl", {**PAIR, "rejected": " 4"}), "dpo")
    assert "a.jsonl:1: chosen and rejected are the same" in message
    assert "DPO needs prompt, chosen and rejected" in refusal(write(tmp_path, "b.jsonl", CHAT), "dpo")


def test_a_file_of_mixed_formats_is_refused_at_the_row_that_differs(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "a.jsonl", CHAT, CHAT, {"text": "once"}))
    assert "a.jsonl:3: a text row in a file of messages rows" in message
    assert "1 of its rows cannot be used" in message


def test_twenty_problems_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "a.jsonl", *[{"text": ""}] * 25))
    assert "25 of its rows" in message
    assert message.count("text is empty") == 20
    assert message.endswith("and 5 more")


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "fine"}\n{"text": "\xff"}\n')
    assert "a.jsonl:2: it is not UTF-8 text" in refusal(tmp_path)


def test_a_promised_format_that_differs_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "a.jsonl", {"text": "once"}), row_format="messages")
    assert "a text row in a file of messages rows" in message


def test_a_folder_without_rows_says_what_lies_there(tmp_path: Path) -> None:
    assert "there is no file or folder" in refusal(tmp_path / "gone")
    assert "found: nothing" in refusal(tmp_path)
    write(tmp_path, "a.csv", "x")
    assert "no .jsonl file lies in" in refusal(tmp_path)
    assert "found: .csv" in refusal(tmp_path)
    assert "has no rows" in refusal(write(tmp_path, "a.jsonl", ""))


ROWS = [Row(f"a:{number}", "", (str(number),)) for number in range(30)]


def test_held_out_rows_depend_on_the_seed_and_are_never_trained_on() -> None:
    split = split_rows(ROWS, [], 0.2, 5, seed=1)
    assert len(split.held_out) == 6
    assert sorted([*split.training, *split.held_out], key=ROWS.index) == ROWS
    assert split == split_rows(ROWS, [], 0.2, 5, seed=1)
    assert split != split_rows(ROWS, [], 0.2, 5, seed=2)


def test_predictions_alone_take_at_most_a_tenth_of_the_rows() -> None:
    assert len(split_rows(ROWS, [], 0, 5, seed=1).held_out) == 3
    assert len(split_rows(ROWS[:4], [], 0, 5, seed=1).held_out) == 1
    assert split_rows(ROWS, [], 0, 0, seed=1).held_out == []
    assert split_rows(ROWS, ROWS[:2], 0, 5, seed=1) == split_rows(ROWS, ROWS[:2], 0.5, 5, seed=2)


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(AttemptFailed, match="leave nothing to train on"):
        split_rows(ROWS[:2], [], 0.9, 0, seed=1)
