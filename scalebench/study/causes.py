"""What an error in a study comes from: its file, or an option ``--set`` beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scalebench.errors import StudyError, shortened
from scalebench.measure.secrets import hide


def study_error(origin: str, settings: Sequence[str], lines: Sequence[str], alone: Callable[[], object]) -> StudyError:
    """Return the error of ``lines``, each ``key: reason``, with what causes it in front of each.

    ``alone`` does what failed with the file at ``origin`` without ``settings``: what it raises, too, is the file's own.
    """
    own = _lines_of(alone) if settings else ()
    texts = dict.fromkeys(lines)
    blamed = (f"{origin}: {line}" for line in texts)
    return StudyError(
        [
            text if not settings or text in own else _caused(origin, settings, line)
            for text, line in zip(blamed, texts, strict=True)
        ]
    )


def _lines_of(action: Callable[[], object]) -> tuple[str, ...]:
    try:
        action()
    except StudyError as error:
        return error.lines
    return ()


def _caused(origin: str, settings: Sequence[str], line: str) -> str:
    """Name the setting of the line's key, or else the file with the settings of its table, or with all of them."""
    key = line.partition(": ")[0].partition("[")[0]  # not which value of an axis it is
    keys = {setting: setting.partition("=")[0].strip() for setting in settings}
    if exact := [setting for setting in settings if keys[setting] == key]:
        value = exact[-1].partition("=")[2].strip()
        hint = f"; a list is written [{_shown(value)}]" if "," in value and value[0] not in "[{\"'" else ""
        return f"--set {_shown(exact[-1])}: {line}{hint}"
    table = key.partition(".")[0]
    near = [setting for setting in settings if keys[setting].partition(".")[0] == table] or settings
    return f"{origin} with {' '.join(f'--set {_shown(setting)}' for setting in near)}: {line}"


def _shown(setting: str) -> str:
    """Return a setting without what looks like a secret, and the middle of a long one left out."""
    return shortened(hide(setting), 120)
