import re
from pathlib import Path

from rich.table import Table

import boxwright
from boxwright.console import make_console


def test_brackets_in_names_are_text_and_lines_stay_whole(capsys):
    table = Table("class [/c]")
    table.add_row("[red]b[/x]")
    make_console().print(table)
    make_console().print(f"a/[b]/{'c' * 300}")
    said = capsys.readouterr().out
    assert all(text in said for text in ("class [/c]", "[red]b[/x]", f"a/[b]/{'c' * 300}\n"))


def test_nobody_speaks_to_the_user_in_another_way():
    files = Path(boxwright.__file__).parent.rglob("*.py")
    assert [file.name for file in files if re.search(r"\bConsole\(", file.read_text())] == ["console.py"]
