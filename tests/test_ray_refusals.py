"""What the Ray engine refuses before any trial: no Ray, and addresses where no cluster of this user answers."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from scalebench.errors import InputError
from scalebench.running.engines import Resources, ray


@pytest.mark.slow
def test_an_address_that_does_not_answer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"nothing answers at RAY_ADDRESS=127\.0\.0\.1"):
            ray.check([Resources()])
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("reply", "words"), [(None, "nothing answers"), (b"SSH-2.0-OpenSSH_9.2\r\n", "not the head"), (b"", "not the head")]
)
def test_a_port_of_something_else_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, reply: bytes | None, words: str
) -> None:
    """Ray itself would try for minutes: at a head that hangs (no reply), another server, one that hangs up."""
    monkeypatch.setattr(ray, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(reply or b"")

        thread = threading.Thread(target=answer)
        if reply is not None:
            thread.start()
        with pytest.raises(InputError, match=words):
            ray.check_answers(f"127.0.0.1:{server.getsockname()[1]}")
        if reply is not None:
            thread.join()


@pytest.mark.parametrize(
    ("written", "words"), [("W gcs_client: InvalidAuthToken", "RAY_AUTH_MODE=token"), ("W gcs_client", "no cluster")]
)
def test_a_cluster_that_refuses_is_one_line_without_what_ray_writes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], written: str, words: str
) -> None:
    def init(**_: Any) -> None:
        os.write(2, f"{written}\n".encode() * 20)
        raise ConnectionError("no cluster\nmore")

    refusing = types.SimpleNamespace(init=init, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", refusing)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(InputError, match=words) as refused:
        ray.check([Resources()])
    assert len(refused.value.lines) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:port", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        ray.check_answers(address)


def test_without_ray_the_run_is_refused_with_what_installs_it(
    small_study: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, errors = command("run", small_study, "--engine", "ray")
    assert code == 2
    assert "pip install '.[ray]'" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "small").exists()
