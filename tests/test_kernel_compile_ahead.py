"""What compiles kernels ahead of time, in a process that interprets them."""

from __future__ import annotations

from pathlib import Path

import compile_ahead
import pytest


def test_compiling_under_the_interpreter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        compile_ahead.main(["--output", str(tmp_path / "x.json")])
    assert end.value.code != 0
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
