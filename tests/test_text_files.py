"""Text files as users have them: what is wrong is named, with the place."""

from pathlib import Path

import pytest

from sciml_snr.text_files import read_number, read_table, read_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own.csv"


def test_utf8_with_and_without_a_mark(path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("größe\n1\n", encoding=encoding)
        assert read_text(path) == "größe\n1\n"
        assert read_table(path) == (["größe"], [(2, ["1"])])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings_are_named(path: Path, encoding: str) -> None:
    path.write_text("größe,t\n1,2\n", encoding=encoding)
    with pytest.raises(ValueError, match=r"own\.csv is no text.*as UTF-8"):
        read_text(path)


def test_what_is_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*own\.csv"):
        read_text(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_text(path)


def test_a_table_with_comments_blank_lines_and_quotes(path: Path) -> None:
    path.write_text('# measured in May\n\nx, t , "u"\n1,2,3\n  # a pause\n\n"4", 5,6\n')
    assert read_table(path) == (["x", "t", "u"], [(4, ["1", "2", "3"]), (7, ["4", "5", "6"])])


def test_an_empty_table(path: Path) -> None:
    path.write_text("# nothing\n")
    assert read_table(path) == ([], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;t;u\n1;2;3\n", "separated by semicolons"),
        ("x\tt\n1\t2\n", "separated by tabs"),
        ("x,t,u\n1,0,5,3\n", r"line 2: there are 4 fields, and the header has 3.*decimal commas"),
        ("x,t,u\n1,0\n", "line 2: there are 2 fields, and the header has 3"),
        ("x,t,x\n1,2,3\n", "two columns 'x'"),
        ('x,t\n1,"2\n', "no CSV file"),
    ],
)
def test_bad_tables(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"own\.csv.*{message}"):
        read_table(path)


@pytest.mark.parametrize("text", ["1", "-0.5", "+1e-3", ".5", "5.", " 2 ", "1E5", "nan", "-inf"])
def test_numbers(text: str) -> None:
    assert repr(read_number(text, "here")) == repr(float(text))


@pytest.mark.parametrize("text", ["1_000", "0x10", "", "one", "1,5", "1 2", "1e", "\u0663", "--1"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"here: .* is not a number") as caught:
        read_number(text, "here")
    assert ("Write 1.5 for 1,5" in str(caught.value)) == (text == "1,5")
