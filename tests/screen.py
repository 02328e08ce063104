"""The screen of a terminal after the output of a program."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\x1b\[(?P<count>\d*)(?P<command>[A-Za-z])|(?P<character>[^\x1b])")
_INCOMPLETE = re.compile(r"\x1b(\[\d*)?$")


class Screen:
    """A terminal that supports the output of tqdm and click: text, carriage returns, line feeds, cursor up."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns = columns
        self.rows = rows
        self._lines: list[str] = [""]
        self._line = self._column = 0
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        """The lines up to the last one with text, including those scrolled off the top."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip("\n").split("\n")

    def write(self, text: str) -> None:
        """Show the output of a program."""
        text = self._rest + text
        self._rest = found[0] if (found := _INCOMPLETE.search(text)) else ""  # a read may end inside an escape sequence
        for piece in _PIECE.finditer(text.removesuffix(self._rest)):
            command, character = piece["command"], piece["character"]
            if command == "A":
                self._line = max(self._line - int(piece["count"] or 1), len(self._lines) - self.rows, 0)
            elif command == "K":
                self._lines[self._line] = self._lines[self._line][: self._column]
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._down()
            elif character:
                self._put(character)

    def _put(self, character: str) -> None:
        if self._column >= self.columns:
            self._column = 0
            self._down()
        line = self._lines[self._line].ljust(self._column)
        self._lines[self._line] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1

    def _down(self) -> None:
        """Move the cursor down without a carriage return, since programs write CR and LF separately."""
        self._line += 1
        if self._line == len(self._lines):
            self._lines.append("")
