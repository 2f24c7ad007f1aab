"""A model behind HTTP: a real server on a free port, and clients beside each other."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from command_support import README
from serve_support import DATA, SCRIPT, Reciter, Running, recited, running, until

from scalebench.families import gpt
from scalebench.running.serving import guard
from scalebench.running.serving.api_errors import ApiError
from scalebench.running.serving.scheduler import Scheduler
from scalebench.workloads.completion import Request, continued
from scalebench.workloads.continuous import Batch


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
        prompt="a", max_tokens=len(SCRIPT.encode()), temperature=0, stream_options={"include_usage": True}
    )
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": len(SCRIPT.encode()),
        "total_tokens": len(SCRIPT.encode()) + 1,
    }
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_stops_finishes_what_runs_and_takes_nothing_more(number: int) -> None:
    with running(Reciter(SCRIPT)) as server, ThreadPoolExecutor(1) as pool:
        server.model.gate.clear()
        asked = pool.submit(server.text, "a", max_tokens=40, temperature=0)
        until(lambda: server.scheduler.running == 1)
        server.server.handle_exit(number, None)
        assert not server.server.force_exit
        with pytest.raises(ApiError) as refused:
            server.scheduler.submit([])
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "5"})
        server.model.gate.set()
        assert asked.result(20) == recited("a", 40)


def test_a_second_signal_ends_what_runs_with_503() -> None:
    with running(Reciter(SCRIPT)) as server, ThreadPoolExecutor(2) as pool:
        server.model.gate.clear()
        asked = [pool.submit(server.post, {"prompt": "a", "max_tokens": 50})]
        until(lambda: server.scheduler.running == 1)
        asked.append(pool.submit(server.post, {"prompt": ["a"] * 5, "max_tokens": 50}))
        until(lambda: server.scheduler.waiting == 5)
        for _ in range(2):  # Ctrl-C twice
            server.server.handle_exit(signal.SIGINT, None)
        server.model.gate.set()
        for each in asked:
            status, document = each.result(20)
            assert (status, document["error"]["code"]) == (503, "stopping")


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
