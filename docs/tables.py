"""Write the README's tables of settings and of error codes from the code: `python docs/tables.py` (or `--check`)."""

from __future__ import annotations

import ast
import sys
from itertools import pairwise
from pathlib import Path

from pydantic import SecretStr

from stream_api import config
from stream_api.config import KIB, MIB, Settings
from stream_api.errors import CODES

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    """Name, default and docstring of every setting."""
    docs = _docstrings()
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"STREAM_API_{name.upper()}")
        rows.append(f"| `{variable}` | {_default(name, field.default)} | {docs[name]} |")
    return "\n".join(rows)


def codes_table() -> str:
    """Code, HTTP status, title and whether it passes by itself, of every error."""
    rows = ["| code | status | | transient |", "|---|---|---|---|"]
    rows += [
        f"| `{code}` | {error.status} | {error.title} | {'yes' if error.transient else ''} |"
        for code, error in CODES.items()
    ]
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The README with its tables as they must be."""
    for name, table in (("settings", settings_table()), ("codes", codes_table())):
        begin, end = f"<!-- {name}: written by docs/tables.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            msg = f"README.md has no place for the table of {name}"
            raise ValueError(msg)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def _default(name: str, value: object) -> str:
    if value is None or value == "":
        return "unset"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    text = f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    if isinstance(value, int) and name.endswith("bytes"):
        for unit, word in ((MIB, "MiB"), (KIB, "KiB")):
            if value and value % unit == 0:
                return f"{text} ({value // unit} {word})"
    return text


def _docstrings() -> dict[str, str]:
    """The string below each field; python keeps none at run time."""
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    docs = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[field.target.id] = " ".join(doc.split())
                case _:
                    docs[field.target.id] = ""
    return docs


def main() -> int:
    """Write, or with `--check` only compare."""
    text = README.read_text(encoding="utf-8")
    wanted = with_tables(text)
    if wanted == text:
        return 0
    if "--check" in sys.argv:
        print("README.md is not up to date: run `make format`", file=sys.stderr)
        return 1
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
