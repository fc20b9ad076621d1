"""Text from elsewhere (a file's name, a recipe) as a terminal may show it."""

import re

# Control characters, which move cursors and break lines; those that turn the direction of writing; lone surrogates,
# which stand for bytes that are no UTF-8 and cannot be written.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text in one line, with what could harm a terminal or a reader written as in Python: \x1b, \n, \u202e."""
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
