"""A text that nothing shows by accident."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn


class Secret:
    """A text that shows itself only to `reveal()`: printed, formatted, logged or dumped it is ``***``.

    A copy is the same object, a comparison takes the same time wherever the texts differ, and a secret can be neither
    pickled nor hashed.
    """

    # The slot holds a function, so that tools that list an object's attributes find no text either.
    __slots__ = ("_read",)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a Secret holds a str, not {type(text).__name__}")
        plain = str.__str__(text)
        self._read: Callable[[], str] = lambda: plain

    def reveal(self) -> str:
        """Return the text itself."""
        return self._read()

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        from hmac import compare_digest  # loads OpenSSL, which takes longer than all the rest of these settings

        return compare_digest(_utf8(self.reveal()), _utf8(other.reveal()))

    __hash__ = None  # type: ignore[assignment]  # a hash by value would be a weak fingerprint, one by id a lie

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: the text would be in clear")


_KEY = os.urandom(32)


def fingerprint(secret: Secret) -> str:
    """Return a text that is the same for equal secrets, in this process and its forks, and gives none of them away."""
    import hmac

    # Keyed, because the plain digest of a short password can be guessed from a log.
    return hmac.new(_KEY, _utf8(secret.reveal()), "sha256").hexdigest()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
