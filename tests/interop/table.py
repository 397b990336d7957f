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


def differences(path, results):
    expected = read(path)
    return [
        f"{column} / {row}: {cell}, but {path.name} says {expected.get(column, {}).get(row, 'nothing')}"
        for column, cells in results.items() for row, cell in cells.items()
        if cell != expected.get(column, {}).get(row)
    ]
