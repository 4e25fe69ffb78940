"""Docstrings mark a code block by a double colon, as Python's own do; Markdown would show the second one."""

import re
from typing import Any

import griffe


class LiteralBlocks(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
