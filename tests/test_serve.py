"""A model behind HTTP: a real server on a free port, and clients beside each other."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from command_support import README, planted, write_study
from drivers import Drivers
from serve_support import DATA, Reciter, Running, running, until
from support import run_here

from scalebench.cli.commands.serve import check_memory
from scalebench.errors import InputError
from scalebench.families import gpt
from scalebench.running.planning import load_study
from scalebench.serving import guard, options
from scalebench.serving.api_errors import ApiError
from scalebench.serving.options import Options
from scalebench.serving.scheduler import Scheduler
from scalebench.serving.server import address, bound
from scalebench.workloads.completion import Request, continued
from scalebench.workloads.continuous import Batch

SCRIPT = "héllo wörld, €uro 😀 and all that follows; "
LENGTH = len(SCRIPT.encode())


@pytest.fixture(scope="module")
def trained() -> Iterator[Running]:
    """A server of a small GPT."""
    torch.manual_seed(0)
    model = gpt.build(gpt.config_for(4e3, vocab_size=256, context=64), "sdpa").eval()
    with running(model) as server:
        yield server


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """A server of a model that recites; at most 50 new tokens."""
    with running(Reciter(SCRIPT), most=50) as server:
        yield server


@pytest.fixture
def reciter(shared: Running) -> Iterator[Running]:
    """The same, with an open gate and nothing left of other tests."""
    yield shared
    shared.model.gate.set()
    until(lambda: not (shared.scheduler.running or shared.scheduler.waiting))


def generated(server: Running, request: Request) -> str:
    """What `scalebench generate` adds to a prompt."""
    text = continued(server.model, DATA, server.model.config, request).text
    return text.removeprefix(request.prompt)


def recited(prompt: str, tokens: int) -> str:
    start = len(prompt.encode())
    return (SCRIPT.encode() * 9)[start : start + tokens].decode(errors="replace")


# --- the text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_requests_beside_each_other_get_the_texts_that_generate_gives(trained: Running, temperature: float) -> None:
    requests = [
        Request("abc def"[: 1 + n], 10 + 4 * n, temperature, 0 if n % 2 or not temperature else 5, seed=n)
        for n in range(7)
    ]
    expected = [generated(trained, request) for request in requests]

    def ask(request: Request) -> str:
        fields = {"max_tokens": request.tokens, "seed": request.seed, "top_k": request.top_k}
        return trained.text(request.prompt, temperature=temperature, **fields)

    with ThreadPoolExecutor(7) as pool:
        assert list(pool.map(ask, requests)) == expected


def test_a_seed_gives_the_same_text_again_and_none_another(trained: Running) -> None:
    texts = [trained.text("a", max_tokens=12, seed=seed) for seed in (3, 3, 4, None, None)]
    assert texts[0] == texts[1]
    assert len({*texts}) == 4
    assert trained.text("a", max_tokens=9, temperature=1e-310) == trained.text("a", max_tokens=9, temperature=0)
    assert trained.text("a", max_tokens=9, top_p=1e-9) == trained.text("a", max_tokens=9, temperature=0)


def test_several_prompts_are_several_choices_in_their_order(reciter: Running) -> None:
    prompts = ["a", "abcd", "ab", "abcdef", "a"]
    status, document = reciter.post({"prompt": prompts, "max_tokens": 9, "temperature": 0, "echo": True})
    assert status == 200
    assert [choice["text"] for choice in document["choices"]] == [each + recited(each, 9) for each in prompts]
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2, 3, 4]
    assert document["usage"] == {"prompt_tokens": 14, "completion_tokens": 45, "total_tokens": 59}
    assert (document["object"], document["model"]) == ("text_completion", "tiny")


def test_a_stream_has_the_text_of_the_whole_and_its_usage(reciter: Running) -> None:
    *chunks, usage, done = reciter.events(
        prompt="a", max_tokens=LENGTH, temperature=0, stream_options={"include_usage": True}
    )
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": LENGTH, "total_tokens": LENGTH + 1}
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == SCRIPT[1:] + SCRIPT[:1]
    assert len(texts) == len(SCRIPT)  # a chunk for each character: no half ones
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_of_several_prompts_begins_with_their_echoes(reciter: Running) -> None:
    *chunks, done = reciter.events(prompt=["a", "abc"], max_tokens=5, temperature=0, echo=True)
    assert done == "[DONE]"
    for number, prompt in enumerate(("a", "abc")):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == number]
        assert "".join(choice["text"] for choice in mine) == prompt + recited(prompt, 5)
        assert mine[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(("stop", "end"), [("ör", "héllo w"), (["zzz", ", €"], "héllo wörld"), ([], SCRIPT[:20])])
def test_a_stop_string_ends_the_text_before_it(reciter: Running, stop: object, end: str) -> None:
    fields = {"prompt": "h", "max_tokens": len(SCRIPT[:20].encode()) - 1, "temperature": 0, "stop": stop}
    _, document = reciter.post(fields)
    (choice,) = document["choices"]
    assert "h" + choice["text"] == end
    assert choice["finish_reason"] == ("stop" if stop else "length")
    streamed = [event["choices"][0] for event in reciter.events(**fields)[:-1]]
    assert "".join(each["text"] for each in streamed) == choice["text"]
    assert streamed[-1]["finish_reason"] == choice["finish_reason"]


def test_the_response_that_the_readme_shows_has_the_fields_of_the_servers(reciter: Running) -> None:
    (block,) = re.findall(r"```text\n\$ scalebench serve.*?```", README, flags=re.DOTALL)
    (body,) = re.findall(r"--json '(.*?)'", block)
    shown = json.loads(block.partition(body + "'\n")[2].rstrip("`"))
    status, document = reciter.post(json.loads(body))
    assert status == 200
    assert document.keys() == shown.keys()
    assert document["choices"][0].keys() == shown["choices"][0].keys()
    assert (document["usage"], document["object"]) == (shown["usage"], shown["object"])


def test_without_max_tokens_there_are_sixteen_or_what_fits(reciter: Running) -> None:
    for prompt, new in (("a", 16), ("a" * 60, 4), ("a" * 63, 1)):
        assert reciter.post({"prompt": prompt, "temperature": None})[1]["usage"]["completion_tokens"] == new


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b"{", 400, None, "no JSON object"),
        (b"\xff\xfe", 400, None, "no JSON object"),
        (b"[" * 100_000, 400, None, "error parsing the body"),
        ([1], 400, None, "no JSON object"),
        ({}, 400, "prompt", "prompt: is missing"),
        ({"prompt": ""}, 400, "prompt", "none of them empty"),
        ({"prompt": []}, 400, "prompt", "none of them empty"),
        ({"prompt": [1, 2]}, 400, "prompt", "lists of tokens are not offered"),
        (b'{"prompt": "\\ud800"}', 400, "prompt", "must be a text"),
        ({"prompt": ["a"] * 49}, 400, "prompt", "at most 48 texts, given 49"),
        ({"prompt": "a" * 64}, 400, "prompt", "64 tokens, and the model's context holds 64"),
        ({"prompt": "a" * 20, "max_tokens": 45}, 400, "max_tokens", "44 fit"),
        ({"prompt": "a", "max_tokens": 51}, 400, "max_tokens", "at most 50 on this server, given 51"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at least 1; given 0"),
        ({"prompt": "a", "max_tokens": True}, 400, "max_tokens", "whole number"),
        ({"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens", "whole number"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature", "at least 0"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature", "at least 0"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p", "above 0 and at most 1; given 0"),
        ({"prompt": "a", "top_k": -1}, 400, "top_k", "at least 0"),
        ({"prompt": "a", "seed": 2**64}, 400, "seed", "64 bits"),
        ({"prompt": "a", "stop": ""}, 400, "stop", "1 to 200 characters"),
        ({"prompt": "a", "stop": list("abcde")}, 400, "stop", "at most 4"),
        ({"prompt": "a", "n": 2}, 400, "n", "n: is not offered"),
        ({"prompt": "a", "logprobs": 0}, 400, "logprobs", "logprobs: is not offered"),
        ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty", "not offered"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias", "not offered"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix", "not offered"),
        ({"prompt": "a", "max_token": 3}, 400, "max_token", "did you mean 'max_tokens'?"),
        ({"prompt": "a", "stream_options": {"x": 1}}, 400, "stream_options", "include_usage"),
        ({"prompt": "a", "model": "gpt-4"}, 404, "model", "'tiny' is"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_with_its_field(
    reciter: Running, body: object, status: int, param: str | None, words: str
) -> None:
    got, document = reciter.post(body)
    assert got == status
    error = document["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} == error.keys()
    assert words in error["message"]


def test_all_mistakes_are_told_at_once(reciter: Running) -> None:
    _, document = reciter.post({"prompt": 1, "top_p": 2, "n": 3, "best": 1})
    assert [line.split(":")[0] for line in document["error"]["message"].splitlines()][:3] == ["prompt", "top_p", "n"]
    assert "unknown 'best'" in document["error"]["message"]


def test_fields_that_change_nothing_are_accepted(reciter: Running) -> None:
    fields = {
        "model": "tiny", "user": "me", "logprobs": None, "n": 1, "best_of": 1, "presence_penalty": 0, "suffix": None,
        "frequency_penalty": 0.0, "logit_bias": {}, "ignore_eos": True, "stop": None, "stream": False, "echo": None,
    }  # fmt: skip
    assert reciter.text("a", max_tokens=4, temperature=0, top_p=1, **fields) == recited("a", 4)


def test_bodies_are_limited_in_size_kind_and_time(reciter: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    status, document = reciter.post({"prompt": "a" * guard.BODY_BYTES})
    assert (status, document["error"]["message"]) == (413, "the body has more than 1,000,000 bytes")
    status, document = reciter.post({"prompt": "a"}, **{"Content-Type": "text/plain"})
    assert (status, "application/json" in document["error"]["message"]) == (415, True)
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.02)
    with socket.create_connection(("127.0.0.1", reciter.port), timeout=20) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_other_paths_and_methods_are_refused_in_the_same_shape(reciter: Running) -> None:
    assert reciter.get("/v1/nothing")[0] == 404
    status, text = reciter.get("/v1/completions")
    assert (status, json.loads(text)["error"]["message"]) == (405, "GET /v1/completions: Method Not Allowed")


def test_the_model_is_listed_and_metrics_are_counted(reciter: Running) -> None:
    status, text = reciter.get("/v1/models")
    (model,) = json.loads(text)["data"]
    assert (status, model["id"], model["max_model_len"]) == (200, "tiny", 64)
    assert json.loads(reciter.get("/v1/models/tiny")[1]) == model
    assert reciter.get("/v1/models/other")[0] == 404
    assert reciter.get("/health") == (200, '{"status":"ok"}')
    metrics = reciter.scheduler.metrics
    tokens, requests = metrics.generated_tokens, sum(metrics.first_token_s.counts)
    reciter.text("a", max_tokens=7)
    text = reciter.get("/metrics")[1]
    assert f"scalebench_generated_tokens_total {tokens + 7}\n" in text
    assert f"scalebench_time_to_first_token_seconds_count {requests + 1}\n" in text
    assert f'scalebench_time_to_first_token_seconds_bucket{{le="+Inf"}} {requests + 1}\n' in text
    assert "scalebench_queue_length 0\n" in text
    assert 'scalebench_requests_total{status="200"} ' in text


# --- clients that leave, queues that fill, models that fail ----------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(reciter: Running, stream: bool) -> None:
    scheduler, before = reciter.scheduler, reciter.scheduler.metrics.generated_tokens
    reciter.model.gate.clear()
    body = json.dumps({"prompt": ["a"] * 5, "max_tokens": 50, "stream": stream}).encode()
    client = socket.create_connection(("127.0.0.1", reciter.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    client.sendall(head.encode() + b"\r\n\r\n" + body)
    until(lambda: scheduler.waiting == 2)  # three have rows, of which the first is in the model
    client.close()
    until(lambda: scheduler.waiting == 0)
    reciter.model.gate.set()
    until(lambda: scheduler.batch.free == 3)
    assert scheduler.metrics.generated_tokens - before <= 3


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_row(reciter: Running) -> None:
    response = reciter.send({"prompt": "a", "max_tokens": 50, "stream": True, "temperature": 0})
    assert response.read(6) == b"data: "
    reciter.model.gate.clear()
    response.close()
    until(lambda: reciter.scheduler.running == 0 or all(job.cancelled for job in reciter.scheduler.batch.jobs))
    reciter.model.gate.set()
    until(lambda: reciter.scheduler.batch.free == 3)


def test_a_full_queue_refuses_more_and_says_when_to_try_again(
    reciter: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reciter.scheduler, "most_waiting", 2)
    reciter.model.gate.clear()
    with ThreadPoolExecutor(5) as pool:
        accepted = [pool.submit(reciter.text, "a", max_tokens=5, temperature=0)]
        until(lambda: reciter.scheduler.running == 1)  # it holds the thread, and the others wait
        accepted += [pool.submit(reciter.text, "ab", max_tokens=5, temperature=0) for _ in range(2)]
        until(lambda: reciter.scheduler.waiting == 2)
        response = reciter.send({"prompt": "a"})
        error = json.loads(response.read())["error"]
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
        assert reciter.get("/health")[0] == 200
        reciter.model.gate.set()
        assert [each.result(20) for each in accepted] == [recited("a", 5)] + [recited("ab", 5)] * 2


def test_a_prompt_on_which_the_model_fails_ends_alone(reciter: Running, capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(reciter.text, "a", max_tokens=50, temperature=0) for _ in range(3)]
        status, document = reciter.post({"prompt": "a!"})
        assert [each.result(20) for each in good] == [recited("a", 50)] * 3
    assert status == 500
    assert document["error"]["type"] == "server_error"
    assert "cannot bear" not in json.dumps(document)
    assert "RuntimeError: the model cannot bear this" in capfd.readouterr().err


def test_a_pass_that_fails_ends_its_requests_and_the_server_goes_on(
    reciter: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = torch.tensor(list(b"abcd!fgh"))
    with monkeypatch.context() as patch:
        patch.setattr(reciter.model, "script", wrong)
        assert [reciter.post({"prompt": prompt, "max_tokens": 9})[0] for prompt in ("a", "ab")] == [500, 500]
        *texts, error = reciter.events(prompt="a", max_tokens=9)
        assert [event["choices"][0]["text"] for event in texts] == ["b", "c", "d", "!"]
        assert error["error"]["code"] == "model_failed"
    assert reciter.text("a", max_tokens=30, temperature=0) == recited("a", 30)
    until(lambda: reciter.scheduler.batch.free == 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Reciter(SCRIPT)) as server:
        monkeypatch.setattr(Batch, "leave", lambda _: 1 / 0)
        assert [server.post({"prompt": "a"})[0] for _ in range(2)] == [500, 503]
        assert server.get("/health") == (503, '{"status":"stopped"}')


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_server_that_stops_finishes_what_runs_and_takes_nothing_more() -> None:
    with running(Reciter(SCRIPT)) as server, ThreadPoolExecutor(1) as pool:
        server.model.gate.clear()
        asked = pool.submit(server.text, "a", max_tokens=40, temperature=0)
        until(lambda: server.scheduler.running == 1)
        server.server.stop()
        with pytest.raises(ApiError) as refused:
            server.scheduler.submit([])
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "5"})
        server.model.gate.set()
        assert asked.result(20) == recited("a", 40)


def test_what_outlasts_the_grace_is_ended_with_503() -> None:
    with running(Reciter(SCRIPT)) as server, ThreadPoolExecutor(2) as pool:
        server.model.gate.clear()
        asked = [pool.submit(server.post, {"prompt": "a", "max_tokens": 50})]
        until(lambda: server.scheduler.running == 1)
        asked.append(pool.submit(server.post, {"prompt": ["a"] * 5, "max_tokens": 50}))
        until(lambda: server.scheduler.waiting == 5)
        server.server.stop(0)
        server.model.gate.set()
        for each in asked:
            status, document = each.result(20)
            assert (status, document["error"]["code"]) == (503, "stopping")


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


def test_the_parts_of_a_response_do_not_wait_for_each_other(reciter: Running) -> None:
    """A response of two writes takes 40 ms where the second waits for the client to acknowledge the first."""
    accepted: list[int] = []
    with contextlib.closing(reciter.connect()) as connection:
        connection.connect()
        until(lambda: reciter.server.server_state.connections)
        for protocol in reciter.server.server_state.connections:
            raw = protocol.transport.get_extra_info("socket")
            accepted.append(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    assert accepted
    assert all(accepted)


def test_the_queue_is_as_long_as_the_batch_allows() -> None:
    assert Scheduler(Batch(Reciter("ab"), 4, 8)).most_waiting == 64


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


@pytest.mark.slow
def test_a_family_that_fills_in_is_not_served(results: Path, command) -> None:
    code, _, err = command("serve", "--trial", trial_id(results, "bert"), "--results", results, "--port", "0")
    assert code == 2
    assert "has family bert, which cannot generate text (families that can: gpt, moe)" in err
