# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""The loaded plugin."""

from __future__ import annotations

import threading
from typing import Any, Optional

from . import _abi, _errors

DEFAULT_NAME = "libkvtrie_worker.so.0"

_default: Optional["Library"] = None
_default_lock = threading.Lock()


class Library:
    """libkvtrie_worker.so, loaded. `path`: the file; None: where ld.so finds it (LD_LIBRARY_PATH, ldconfig).

    Raises OSError when it is not there, RuntimeError when it is older than this package. Stays loaded until the process
    ends. Any thread may use it; other Python threads run while a call of the plugin does.
    """

    def __init__(self, path: Optional[str] = None) -> None:
        self.path = path or DEFAULT_NAME
        try:
            self.calls: Any = _abi.bind(self.path)
        except OSError as error:
            raise OSError(
                f"{error}; name it (kvtrie.Library('.../libkvtrie_worker.so')), or put its folder into LD_LIBRARY_PATH"
            ) from None
        except AttributeError as error:
            raise RuntimeError(f"{self.path} is older than this package: {error}") from None
        if not self.calls.kvtrie_get_api(_abi.API_VERSION):
            raise RuntimeError(
                f"{self.path} ({self.version()}) does not know version {_abi.API_VERSION} of its interface"
            )

    @staticmethod
    def default() -> "Library":
        """The library where ld.so finds it, loaded once."""
        global _default
        with _default_lock:
            if _default is None:
                _default = Library()
            return _default

    def version(self) -> str:
        """ "kvtrie 0.1.0" """
        text: bytes = self.calls.kvtrie_version()
        return text.decode()

    def api_version(self) -> int:
        """The highest version of the interface that the library knows."""
        version: int = self.calls.kvtrie_api_version()
        return version

    def last_error(self) -> str:
        """Text of the last failure on this thread; exceptions carry it already."""
        text: bytes = self.calls.kvtrie_last_error()
        return text.decode(errors="replace")

    def code_name(self, code: int) -> str:
        """A code in one word: "not_now". """
        text: bytes = self.calls.kvtrie_code_name(code)
        return text.decode()

    def check(self, code: int) -> None:
        """Raises the exception of a code, unless it is KVTRIE_OK."""
        if code:
            raise _errors.make(code, self.last_error())


