import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lorasmith.data import read
from lorasmith.data.libraries import huggingface
from lorasmith.data.sources import parquet
from lorasmith.errors import DataError

ROWS = [{"text": "ein Wort", "label": "a"}, {"text": 'two, "quoted"\nlines', "label": "b"}]


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def files_of_every_format(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    quoted = 'text{0}label\nein Wort{0}a\n"two, ""quoted""\nlines"{0}b\n'
    return [
        written(folder, "rows.jsonl", as_jsonl(ROWS)),
        written(folder, "rows.json", json.dumps(ROWS, indent=1)),
        written(folder, "under_a_key.json", json.dumps({"version": 1, "data": ROWS})),
        written(folder, "lines.json", as_jsonl(ROWS)),
        written(folder, "rows.csv", quoted.format(",")),
        written(folder, "rows.tsv", quoted.format("\t")),
        folder / "rows.parquet",
    ]


def test_every_format_gives_the_same_records(tmp_path):
    for path in files_of_every_format(tmp_path):
        assert read(path) == ROWS, path.name


def test_records_know_their_line(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n')
    assert [record.place for record in read(path)] == [f"{path}, line 1", f"{path}, line 3"]
    # a quoted line break: the row ends on line 4
    path = written(tmp_path, "a.csv", 'text\nx\n"y\nz"\n')
    assert [record.place for record in read(path)] == [f"{path}, line 2", f"{path}, line 4"]


def test_a_unicode_line_separator_inside_a_json_string_does_not_end_the_line(tmp_path):
    path = written(tmp_path, "a.jsonl", json.dumps({"text": "x\u2028y"}, ensure_ascii=False))
    assert read(path) == [{"text": "x\u2028y"}]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    assert read(written(tmp_path, "a.csv", "\ufefftext\nx\n")) == [{"text": "x"}]


def test_a_text_file_is_one_document(tmp_path):
    assert read(written(tmp_path, "a.txt", "one\n\ntwo\n")) == [{"text": "one\n\ntwo\n"}]


def test_fields_of_a_csv_may_be_longer_than_the_standard_limit(tmp_path):
    long = "x" * 200_000  # csv refuses more than 131072 by default
    assert read(written(tmp_path, "a.csv", f"text\n{long}\n"))[0]["text"] == long


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": oops}\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', "line 2: holds a list"),
        ("a.json", '[{"text": "x"},\n {"text" "y"}]', "a.json, line 2: not valid JSON"),
        ("a.json", '[{"text": "x"}, 3]', "record 2: holds a int"),
        ("a.json", '{"text": "x", "n": 1}', "is not a list of records"),
        ("a.csv", "text,label\nx,1\ny\n", "line 3: has 1 fields where the header names 2"),
        ("a.csv", "text,text\nx,1\n", "line 1: the columns text occur twice"),
        ("a.csv", 'text\n"x\n', "not valid CSV"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: byte 0xff is not UTF-8"),
        ("a.parquet", "no table", "no readable Parquet"),
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n\n", "holds no records"),
        ("a.csv", "text,label\n", "holds no records"),
        ("a.json", "[]", "holds no records"),
        ("a.txt", "  \n", "holds no records"),
        ("a.xlsx", "x", "files of type '.xlsx' cannot be read; known: .csv, .json"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line_that_names_it(tmp_path, name, content, words):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    assert words in message and str(path) in message and "\n" not in message


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path):
    written(tmp_path, "train.jsonl", as_jsonl(ROWS))
    with pytest.raises(DataError, match=r"trian.jsonl does not exist; Did you mean 'train.jsonl'"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"its folder .*nowhere does not exist either"):
        read(tmp_path / "nowhere" / "train.jsonl")


def test_a_folder_gives_its_training_files_or_those_of_a_split(tmp_path):
    written(tmp_path, "train-0.jsonl", as_jsonl(ROWS[:1]))
    written(tmp_path, "train-1.csv", "text,label\nx,y\n")
    written(tmp_path, "test.jsonl", as_jsonl(ROWS))
    written(tmp_path, "README.md", "no data")
    assert read(tmp_path) == [ROWS[0], {"text": "x", "label": "y"}]
    assert read(tmp_path, split="test") == ROWS
    with pytest.raises(DataError, match=r"no data file of split 'dev'; data files found: test.jsonl, train-0.jsonl"):
        read(tmp_path, split="dev")


def test_a_saved_data_set_is_read_by_its_split(tmp_path):
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == ROWS
    assert read(tmp_path / "saved", split="test") == ROWS[:1]
    with pytest.raises(DataError, match=r"no split 'tests'; its splits: train, test. Did you mean 'test'"):
        read(tmp_path / "saved", split="tests")


def test_a_name_is_loaded_from_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = read("owner/name", subset="en")
    assert records == ROWS and asked == [("owner/name", "en", "train")]
    assert records[1].place == "owner/name, split train, row 2"


def test_a_name_that_cannot_be_loaded_is_an_error_of_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def load_dataset(name, subset, split):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"owner/name is neither a file nor a data set .*no route to host") as error:
        read("owner/name")
    assert "\n" not in str(error.value)


def test_without_the_optional_libraries_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface, "datasets", None)
    monkeypatch.setattr(parquet, "pyarrow", None)
    for source in ("owner/name", written(tmp_path, "a.parquet", "x")):
        with pytest.raises(DataError, match=r"pip install 'lorasmith\[data\]'"):
            read(source)
