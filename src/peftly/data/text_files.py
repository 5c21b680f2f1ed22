"""Lines of text files in UTF-8, or in UTF-16 with a byte order mark, as Excel and PowerShell write them."""

import codecs
import shlex
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from peftly.errors import DataError

__all__ = ["BYTE_ORDER_MARK", "decoding_error", "encoding_of", "text_lines"]

BYTE_ORDER_MARK = "\ufeff"


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file by its byte order mark: "utf-16", or "utf-8-sig" for all other files."""
    with path.open("rb") as file:
        is_utf_16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if is_utf_16 else "utf-8-sig"


def text_lines(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line, without a byte order mark at its start.

    Files that `cat` has joined can have such a mark in front of any line.

    Args:
        name: name of the file, for messages.
        path: file to read.

    Raises:
        DataError: a line is no text in the encoding of the file.
    """
    encoding = encoding_of(path)
    with path.open("rb") as file:
        if encoding == "utf-16":
            try:
                for number, text in enumerate(TextIOWrapper(file, encoding, newline="\n"), start=1):
                    yield number, text.lstrip(BYTE_ORDER_MARK)
            except UnicodeError as error:
                raise decoding_error(name, path, error) from None
            return
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode().lstrip(BYTE_ORDER_MARK)
            except UnicodeDecodeError as error:
                raise _line_error(name, number, path, error) from None


def decoding_error(name: str, path: Path, error: UnicodeError) -> DataError:
    """Return the error about a file that is no text in its encoding, with the number of the line if that is UTF-8.

    Args:
        name: name of the file, for messages.
        path: the file.
        error: error of the decoding.
    """
    reason = getattr(error, "reason", error)
    if encoding_of(path) == "utf-16":
        return DataError(f"{name}: not UTF-16 text, as its first bytes say ({reason}); save the file as UTF-8")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error_of_line:
                return _line_error(name, number, path, error_of_line)
    return DataError(f"{name}: not UTF-8 text ({reason}); save the file as UTF-8")


def _line_error(name: str, number: int, path: Path, error: UnicodeDecodeError) -> DataError:
    advice = "save the file as UTF-8 (Excel: as 'CSV UTF-8')"
    if _may_be_gbk(error.object):
        advice += f"; if it is GBK, convert it: iconv -f GBK -t UTF-8 {shlex.quote(name)} > utf8{path.suffix}"
    return DataError(f"{name}: line {number} is not UTF-8 text ({error.reason}); {advice}")


def _may_be_gbk(line: bytes) -> bool:
    """Return whether a line can be read as GBK, as which Excel on Chinese Windows writes a CSV file."""
    try:
        return any("\u4e00" <= character <= "\u9fff" for character in line.decode("gb18030"))
    except UnicodeDecodeError:
        return False
