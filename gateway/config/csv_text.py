"""Rows as CSV, for reports. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

#: With one of these at its beginning a spreadsheet takes text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """CSV (RFC 4180) with a header line; text that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["'" + cell if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row])
    return text.getvalue()
