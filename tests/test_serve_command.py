"""The command `scalebench serve`: its options, keys and certificates, and a trained model served until a signal."""

from __future__ import annotations

import json
import re
import shutil
import signal
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest
from command_support import planted, write_study
from drivers import Drivers
from serve_support import SCRIPT, Reciter, recited, running, until
from support import run_here

from scalebench.cli.commands.serve import check_memory
from scalebench.errors import InputError
from scalebench.running.planning import load_study
from scalebench.running.serving import options
from scalebench.running.serving.options import Options
from scalebench.running.serving.server import address, bound

# --- keys and certificates -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    return certificate, key


def key_file(folder: Path, text: str = "sesame\n", mode: int = 0o600) -> Path:
    path = folder / "key.txt"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with running(Reciter(SCRIPT), Options(port=0, api_key_file=key_file(tmp_path))) as server:
        for headers in (
            {},
            {"Authorization": "Bearer sesam"},
            {"Authorization": "sesame"},
            {"Authorization": "Bearer"},
        ):
            response = server.send({"prompt": "a"}, **headers)
            error = json.loads(response.read())["error"]
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
        assert server.get("/metrics")[0] == server.get("/v1/models")[0] == 401
        assert server.get("/health")[0] == 200
        server.headers["Authorization"] = "Bearer sesame"
        assert server.text("a", max_tokens=5, temperature=0) == recited("a", 5)


@pytest.mark.slow
def test_over_tls_the_text_is_the_same(certificate: tuple[Path, Path]) -> None:
    chosen = Options(port=0, tls_certificate=certificate[0], tls_key=certificate[1])
    chosen.check()
    with running(Reciter(SCRIPT), chosen) as server:
        server.secure = ssl.create_default_context(cafile=str(certificate[0]))
        assert server.text("a", max_tokens=5, temperature=0) == recited("a", 5)


def test_a_file_of_a_key_is_read_and_others_are_kept_out(tmp_path: Path) -> None:
    assert Options(api_key_file=key_file(tmp_path)).api_key() == "sesame"
    assert Options(api_key_file=key_file(tmp_path)).warnings() == []
    assert "chmod 600" in Options(api_key_file=key_file(tmp_path, mode=0o644)).warnings()[0]
    for text in ("", " \n", "open sesame", "schlüssel"):
        with pytest.raises(InputError, match="must hold one key"):
            Options(api_key_file=key_file(tmp_path, text)).api_key()
    with pytest.raises(InputError, match="cannot be read"):
        Options(api_key_file=tmp_path / "none").api_key()


def test_a_server_that_is_open_to_the_network_is_warned_of(tmp_path: Path) -> None:
    assert [Options(host=host).warnings() for host in ("localhost", "127.0.0.1", "::1")] == [[], [], []]
    assert "--api-key-file asks for a key" in Options(host="0.0.0.0").warnings()[0]
    assert "unencrypted" in Options(host="::", api_key_file=key_file(tmp_path)).warnings()[0]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--port", "70000"), "--port: must be 0 (any free one) to 65535, given 70000"),
        (("--max-batch", "0"), "--max-batch: must be at least 1, given 0"),
        (("--max-tokens", "0"), "--max-tokens: must be at least 1, given 0"),
        (("--tls-key", "k.pem"), "--tls-key: --tls-certificate is missing"),
        (("--tls-certificate", "c.pem"), "--tls-certificate: c.pem is no file"),
        (("--api-key-file", "none"), "--api-key-file: none cannot be read"),
        (("--results", "nothing"), "nothing: no results here"),
        (("3f2a", "--results", "nothing"), "nothing: no results here"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(command, words: tuple[str, ...], expected: str) -> None:
    code, out, err = command("serve", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(expected)


def test_a_trial_is_named_with_or_without_the_option(command, tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "demo", planted()[:2])
    for words in (("ffff",), ("--trial", "ffff")):
        code, _, err = command("serve", *words)
        assert (code, err.startswith("--trial: no such trial 'ffff'; no trial here kept its weights")) == (2, True)
    assert "no trial here kept the weights of a model that generates text" in command("serve")[2]


def test_a_batch_that_does_not_fit_the_memory_is_refused() -> None:
    check_memory(4096, 8)
    with pytest.raises(InputError, match=r"--max-batch: keys and values of 1000000 sequences take 9.* are free"):
        check_memory(10**11, 10**6)


def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(command, monkeypatch) -> None:
    monkeypatch.setattr(options, "LIBRARIES", ("fastapi_that_is_missing",))
    code, _, err = command("serve")
    assert code == 2
    assert err.endswith("install the extra with pip install '.[serve]'\n")
    assert err.count("\n") == 1


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("no certificate")
    with pytest.raises(InputError, match="is no PEM certificate"):
        Options(tls_certificate=tmp_path / "c.pem").check()


def test_a_port_that_is_taken_is_refused_and_zero_finds_a_free_one() -> None:
    with bound(Options(port=0)) as first:
        port = first.getsockname()[1]
        assert address(Options(port=0), first) == f"http://127.0.0.1:{port}/v1"
        with pytest.raises(InputError, match=f"--port: 127.0.0.1 port {port}: Address already in use"):
            bound(Options(port=port))
    with pytest.raises(InputError, match=r"--host: no\.such\.host\.invalid"):
        bound(Options(host="no.such.host.invalid"))


STUDY = """
schema = 1
name = "story"
[model]
family = "{family}"
params = 4000
[train]
steps = 30
batch_size = 8
sequence_length = 32
implementation = "sdpa"
[data]
source = "text:{story}"
validation_samples = 16
[run]
checkpoint = true
checkpoint_steps = [10]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder: a GPT with a checkpoint, and a BERT."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "story.txt").write_text("".join(f"{i:03d}\n{'abcabcabd ' * 20}\n" for i in range(900)))
    for family in ("gpt", "bert"):
        text = STUDY.format(family=family, story=folder / "story.txt").replace('"story"', f'"{family}"')
        (folder / f"{family}.toml").write_text(text if family == "gpt" else text.replace("checkpoint_steps = [10]", ""))
        rows = run_here(load_study(folder / f"{family}.toml"), folder / "results").values()
        assert [row["status"] for row in rows] == ["ok"]
    return folder / "results"


def trial_id(results: Path, study: str) -> str:
    return next((results / study / "trials").iterdir()).name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_the_text_of_generate_until_a_signal(
    results: Path, command, drivers: Drivers, tmp_path: Path, number: int
) -> None:
    trial = trial_id(results, "gpt")
    name = trial if number == signal.SIGTERM else f"{trial}/step-10"
    words = () if number == signal.SIGTERM else (name,)  # the best trial: a bert is not served
    driver = drivers.start(tmp_path, ["serve", *words, "--results", results, "--port", "0"])
    until(lambda: (driver.folder / "stdout.log").exists() and ("/v1;" in driver.out or driver.poll() is not None))
    port = int(re.findall(r":(\d+)/v1;", driver.out)[0])
    body = json.dumps({"model": name, "prompt": "abcabc", "max_tokens": 20, "temperature": 0, "echo": True}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        text = json.loads(response.read())["choices"][0]["text"]
    driver.send_signal(number)
    assert driver.wait(20) == 0
    assert driver.out.splitlines()[-1] == "stopped after 1 response"
    wanted = ("--prompt", "abcabc", "--tokens", "20", "--temperature", "0", "--json")
    assert text == json.loads(command("generate", results, "--trial", name, *wanted)[1])["text"]
    assert ("lowest of 1 with weights" in driver.err) == (number == signal.SIGTERM)
    assert len(driver.err.splitlines()) == (number == signal.SIGTERM)  # no traceback


@pytest.mark.slow
def test_a_family_that_fills_in_is_not_served(results: Path, command) -> None:
    code, _, err = command("serve", "--trial", trial_id(results, "bert"), "--results", results, "--port", "0")
    assert code == 2
    assert "has family bert, which cannot generate text (families that can: gpt, moe)" in err
