# pyright: basic
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.contracts.training.datasets import CaptionShuffle, CaptionTable, DatasetSpec
from trainer.data.buckets import BucketRule
from trainer.data.captions import Captions, MissingCaption, orders_of
from trainer.data.discover import discover
from trainer.failures import AttemptFailed
from trainer.report.events import Redactor, Reporter
from trainer.report.spool import Spool

RULE = BucketRule(edge=32, edge_type="pixel_area", rounding=2, alignment=8)


def captions_of(picture: Path, **settings: Any) -> list[str]:
    dataset = DatasetSpec(id="d", instance_data_dir=str(picture.parent), **settings)
    return Captions(dataset, picture.parent, seed=1).of(picture)


def test_caption_strategies(tmp_path: Path) -> None:
    path = tmp_path / "a_red__fox.png"
    path.with_suffix(".txt").write_text("first line\n\n second line \n", encoding="utf-8")
    path.with_suffix(".caption").write_text("another", encoding="utf-8")
    assert captions_of(path, caption_strategy="textfile") == ["first line", "second line"]
    assert captions_of(path, caption_strategy="textfile", caption_extension=".caption") == ["another"]
    whole = captions_of(path, caption_strategy="textfile", disable_multiline_split=True)
    assert whole == ["first line\n\n second line"]
    assert captions_of(path) == ["a red fox"]
    assert captions_of(path, caption_strategy="instanceprompt", instance_prompt="zork") == ["zork"]
    assert captions_of(path, instance_prompt="zork", prepend_instance_prompt=True) == ["zork a red fox"]


ROWS = [
    {"name": "one", "text": "a fox", "tags": "x"},
    {"name": "two", "text": "", "tags": "fallback"},
    {"name": "three", "text": "", "tags": ""},
]


def write_table(path: Path) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(ROWS[0]), *(separator.join(row.values()) for row in ROWS)]
        path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.csv", "t.tsv"])
def test_a_table_gives_captions_fallbacks_and_names_the_row_that_is_missing(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name)
    table = CaptionTable(
        path=f"/elsewhere/{name}", filename_column="name", caption_column="text", fallback_caption_column="tags"
    )
    settings: dict[str, Any] = {"caption_strategy": "parquet", "parquet": table}
    assert captions_of(tmp_path / "one.png", **settings) == ["a fox"]
    assert captions_of(tmp_path / "two.jpg", **settings) == ["fallback"]
    with pytest.raises(MissingCaption, match="empty text"):
        captions_of(tmp_path / "three.png", **settings)
    with pytest.raises(MissingCaption, match=r"no row of .* has 'four' as its name"):
        captions_of(tmp_path / "four.png", **settings)


def test_a_table_may_name_files_with_their_ending_and_folder(tmp_path: Path) -> None:
    rows = [{"f": "in/a.png", "c": ["one", "two"]}]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    table = CaptionTable(path="t.jsonl", filename_column="f", caption_column="c", identifier_includes_extension=True)
    dataset = DatasetSpec(id="d", instance_data_dir=str(tmp_path), caption_strategy="parquet", parquet=table)
    assert Captions(dataset, tmp_path, 1).of(tmp_path / "in" / "a.png") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", '{"name": "a", "text": "b"}\n{oops', "line 2 is not JSON"),
        ("t.jsonl", '{"text": "b"}', "line 1 is no object with a member 'name'"),
        ("t.csv", "file,text\na,b", "no column name; it has file, text"),
        ("t.parquet", "not parquet", "cannot be read"),
        ("t.xls", "", "no .parquet, .jsonl, .csv or .tsv"),
        ("other.csv", "", "there is no caption table t.csv"),
    ],
)
def test_a_bad_table_is_named_with_its_line_or_column(tmp_path: Path, name: str, content: str, says: str) -> None:
    if name == "t.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content, encoding="utf-8")
    path = "t.csv" if name == "other.csv" else name
    table = CaptionTable(path=path, filename_column="name", caption_column="text")
    with pytest.raises(AttemptFailed, match=says) as failed:
        captions_of(tmp_path / "a.png", caption_strategy="parquet", parquet=table)
    assert failed.value.kind == "bad_data"


@pytest.fixture
def reporter(tmp_path: Path) -> Any:
    spool = Spool(tmp_path / "spool", "job", "attempt")
    opened = Reporter(spool, Redactor())
    opened.emit("hello")
    yield opened
    spool.close()


def test_missing_captions_are_an_error_that_names_the_files_and_what_to_do(tmp_path: Path, reporter: Any) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / f"p{index}.png")
    (folder / "p0.txt").write_text("a caption", encoding="utf-8")
    (folder / "p1.txt").write_text(" \n", encoding="utf-8")
    dataset = DatasetSpec(id="d", instance_data_dir=str(folder), caption_strategy="textfile")
    with pytest.raises(AttemptFailed) as failed:
        discover(dataset, folder, RULE, reporter)
    assert failed.value.kind == "bad_data"
    assert "p1.png: p1.txt is empty; p2.png: there is no p2.txt beside it" in failed.value.message
    assert failed.value.message.endswith("and 2 more")
    assert "caption_strategy to filename" in failed.value.advice


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path, reporter: Any) -> None:
    dataset = DatasetSpec(id="d", instance_data_dir=str(tmp_path))
    with pytest.raises(AttemptFailed, match=f"{tmp_path} holds no picture"):
        discover(dataset, tmp_path, RULE, reporter)


def test_shuffled_tags_keep_the_first_and_are_a_function_of_seed_and_caption() -> None:
    caption = "zork, red, fox, snow"
    orders = orders_of(caption, CaptionShuffle(count=20, position_start=1), seed=3)
    assert orders[0] == caption
    assert len(orders) == 6
    assert all(
        order.startswith("zork, ") and sorted(order.split(", ")) == sorted(caption.split(", ")) for order in orders
    )
    assert orders == orders_of(caption, CaptionShuffle(count=20, position_start=1), seed=3)
    few = CaptionShuffle(count=2)
    assert orders_of(caption, few, seed=3) != orders_of(caption, few, seed=4)
    fixed = CaptionShuffle(count=2, seed=9)
    assert orders_of(caption, fixed, seed=3) == orders_of(caption, fixed, seed=4)
    assert caption not in orders_of(caption, CaptionShuffle(count=1, include_original=False, seed=1), seed=1)
    assert orders_of("zork, red", CaptionShuffle(position_start=1), seed=3) == ["zork, red"]
