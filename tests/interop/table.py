"""The checked-in table of cases and clients, and what differs from it.

A cell is `pass` or `client lacks it: SOURCE`, SOURCE being the file of the client that shows it.
"""
PASS = "pass"
LACKS = "client lacks it: "


def lacks(source):
    return LACKS + source


def show(column, row, cell, seconds):
    print(f"  {column:14} {row:16} {seconds:4.0f} s  {cell}", flush=True)


def read(path):
    """Column -> row -> cell, over all the tables of the file."""
    cells, header = {}, None
    for text in path.read_text().splitlines():
        if not text.startswith("|"):
            header = None
            continue
        words = [word.strip() for word in text.strip("|").split("|")]
        if header is None:
            header = words[1:]
        elif words[0].strip("-"):  # not the rule below the header
            for column, cell in zip(header, words[1:]):
                cells.setdefault(column, {})[words[0]] = cell
    return cells


def differences(path, results, wanted=lambda column, row: True):
    """Between the table and what was found. Of the columns that ran, each row that is `wanted` must have been found."""
    expected, found = read(path), []
    for column, cells in results.items():
        told = expected.get(column, {})
        for row, cell in cells.items():
            if cell != told.get(row):
                found.append(f"{column} / {row}: {cell}, but {path.name} says {told.get(row, 'nothing')}")
        found += [f"{column} / {row}: did not run" for row in told if row not in cells and wanted(column, row)]
    return found
