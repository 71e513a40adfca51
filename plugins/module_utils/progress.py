"""A line on the terminal that tells what is waited for: shared by all clusters, gone before other output."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from ansible.utils.display import Display

CLEAR = "\r\x1b[K"  # to the line's start, and erase it
_prepared = False


def prepare() -> None:
    """Allow progress lines, where standard output is a terminal; to be called in ansible-playbook's main process.

    The workers that wait have no terminal. What they display is printed by the main process, so it is there that a
    line is cut to the terminal's width and cleared before other output.
    """
    global _prepared
    if _prepared or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return
    _prepared = True
    shown = False
    write, write_error = sys.stdout.write, sys.stderr.write

    def clear() -> None:
        nonlocal shown
        if shown:
            shown = False
            write(CLEAR)
            sys.stdout.flush()

    def guarded(text: str) -> int:
        nonlocal shown
        if not text.startswith(CLEAR):
            clear()
            return write(text)
        shown = len(text) > len(CLEAR)
        # A line that wraps could not be cleared.
        written = write(text[: len(CLEAR) + shutil.get_terminal_size().columns - 1])
        sys.stdout.flush()
        return written

    def guarded_error(text: str) -> int:
        clear()
        return write_error(text)

    sys.stdout.write = guarded  # type: ignore[method-assign]
    if sys.stderr.isatty():
        sys.stderr.write = guarded_error  # type: ignore[method-assign]


def progress_line(cluster_name: str) -> Callable[[str], None] | None:
    """A function that shows one line of text, or none for an empty text; None where there is no terminal for it."""
    if not _prepared:
        return None

    def show(text: str) -> None:
        line = f"{cluster_name}: {' '.join(text.split())}" if text else ""
        Display().display(CLEAR + line, newline=False, screen_only=True)

    return show
