"""Text files as users have them: UTF-8, CSV tables, numbers. An error names the place."""

from __future__ import annotations

import csv
import re
from pathlib import Path

_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text in UTF-8.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder.")
    if not path.is_file():
        raise ValueError(f"{path} is no file, but a pipe or a device: give a file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise type(error)(f"Cannot read {path}: {error.strerror or error}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise ValueError(
            f"{path} is no text in UTF-8 ({kind}, from byte {error.start} on): save it as UTF-8."
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} is no text: it has a byte 0. Save it as UTF-8.")
    return text


def read_table(path: str | Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """A CSV file: the names of its columns, and (line of the file, fields) of every row.

    Lines that are empty or start with ``#`` are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text in UTF-8, a name stands twice, a row has another number of fields
            than the header, or the columns are separated by other signs than commas.
    """
    numbered = [
        (i, line)
        for i, line in enumerate(read_text(path).splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        return [], []
    try:
        # A quoted field may span lines; rows of plain numbers, which we need, do not.
        parsed = [
            (i, next(csv.reader([line], skipinitialspace=True, strict=True)))
            for i, line in numbered
        ]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}.") from None
    header = [name.strip() for name in parsed[0][1]]
    for sign, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise ValueError(
                f"{path}: the columns are separated by {word}: separate them by commas, and write "
                "numbers with points (0.5)."
            )
    if twice := [name for i, name in enumerate(header) if name in header[:i]]:
        raise ValueError(f"{path}: there are two columns {twice[0]!r}: remove one of them.")
    for line, fields in parsed[1:]:
        if len(fields) != len(header):
            hint = ""
            if len(fields) > len(header):
                hint = " Are there decimal commas? Write numbers with points (0.5)."
            raise ValueError(
                f"{path}, line {line}: there are {len(fields)} fields, and the header has "
                f"{len(header)}.{hint}"
            )
    return header, parsed[1:]


def read_number(text: str, where: str) -> float:
    """A number as programs write it: 12, -0.5, 1e-3; nan and inf are numbers too.

    Raises:
        ValueError: it is something else; the message begins with ``where``.
    """
    found = text.strip()
    if not _NUMBER.fullmatch(found):
        hint = ""
        if re.fullmatch(r"[+-]?\d+,\d+", found):
            hint = f" Write {found.replace(',', '.')} for {found}."
        raise ValueError(f"{where}: {text!r} is not a number.{hint}")
    return float(found)
