"""The commands on results (report, export, generate, serve, demo): signatures and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from scalebench.cli import completions
from scalebench.cli.options import RESULTS, File, Json, ResultsArgument, ResultsOption, SeveralResults, Where, Whole


def report(
    results: SeveralResults = [RESULTS],  # noqa: B006
    /,
    *,
    output: Annotated[File, Parameter(["--output", "-o"], help="The HTML file to write.")] = Path("report.html"),
    pictures: Annotated[bool, Parameter(negative=(), help="Also write each study's first figure as a PNG.")] = False,
) -> int:
    """Write one self-contained HTML report of the studies under RESULTS."""
    from scalebench.cli.commands.stored import write_report

    return write_report(results, output, pictures=pictures)


def export(
    results: ResultsArgument = RESULTS,
    /,
    *,
    output: Annotated[File, Parameter(["--output", "-o"], help="A .csv or .parquet file; with --to, a new folder.")],
    to: Annotated[
        Literal["tensorboard", "wandb-offline", "mlflow"] | None,
        Parameter(show_default=False, help="Write runs of this experiment tracker, with their training curves."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Write every trial of every study under RESULTS as a table, one row per trial, or as runs of a tracker."""
    from scalebench.cli.commands.stored import export_table, export_to

    if to is None:
        return export_table(results, output, as_json=as_json)
    return export_to(results, to, output, as_json=as_json)


def generate(
    results: ResultsArgument = RESULTS,
    /,
    *,
    trial: Annotated[str | None, Parameter(show_default=False, completer=completions.trials)] = None,
    prompt: str,
    family: Annotated[str | None, Parameter(show_default=False)] = None,
    tokens: Annotated[Whole | None, Parameter(show_default=False)] = None,
    temperature: Annotated[float | None, Parameter(show_default=False)] = None,
    top_k: Whole = 0,
    top_p: float = 1.0,
    beams: Whole = 1,
    seed: Whole = 0,
    as_json: Json = False,
) -> int:
    """Generate text with a trained model under RESULTS (its study must keep weights: checkpoint = true).

    Parameters
    ----------
    trial:
        Trial id, or the first digits of it; `scalebench show` lists them (default: the lowest validation loss).
        ID/step-80 is the checkpoint after 80 steps (`[run] checkpoint_steps`).
    prompt:
        Text to continue.
    family:
        Python file of your own that defines the trial's family, as its study names it; it is run.
    tokens:
        Number of tokens to generate (default: 100, or as many as fit into the model's context).
    temperature:
        Sampling temperature; 0 is greedy decoding (default: 1).
    top_k:
        Sample from the k most likely tokens (0: all).
    top_p:
        Sample from the smallest set of most likely tokens with at least this total probability.
    beams:
        Beam width; above 1, beam search instead of sampling.
    seed:
        Sampling seed.
    """
    from scalebench.cli.commands.generate import run_generate
    from scalebench.workloads.completion_options import Request

    request = Request(prompt, tokens, temperature, top_k, top_p, beams, seed)
    return run_generate(results, trial, request, family=family, as_json=as_json)


def serve(
    trial: Annotated[str | None, Parameter(show_default=False, completer=completions.trials)] = None,
    *,
    results: ResultsOption = RESULTS,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    max_batch: Whole = 8,
    max_tokens: Annotated[Whole | None, Parameter(show_default=False)] = None,
    api_key_file: Annotated[File | None, Parameter(show_default=False)] = None,
    tls_certificate: Annotated[File | None, Parameter(show_default=False)] = None,
    tls_key: Annotated[File | None, Parameter(show_default=False)] = None,
    family: Annotated[str | None, Parameter(show_default=False)] = None,
) -> int:
    """Serve a trained model under RESULTS over HTTP, with OpenAI's API for completions, until Ctrl-C.

    Parameters
    ----------
    trial:
        Trial id, or the first digits of it; `scalebench show` lists them (default: the lowest validation loss).
        ID/step-80 is the checkpoint after 80 steps (`[run] checkpoint_steps`).
    host:
        Address to listen on; 0.0.0.0 is open to the network.
    port:
        Port to listen on; 0 is any free one. The address is printed.
    max_batch:
        Number of prompts that are continued at the same time; others wait.
    max_tokens:
        Most tokens that a request may generate (default: what the model's context leaves).
    api_key_file:
        File with the key that clients must have.
    tls_certificate:
        PEM file with the certificate for HTTPS.
    tls_key:
        PEM file with the certificate's key, if that is not in the same file.
    family:
        Python file of your own that defines the trial's family, as its study names it; it is run.
    """
    from scalebench.cli.commands.serve import run_serve
    from scalebench.running.serving.options import Options

    options = Options(host, port, max_batch, max_tokens, api_key_file, tls_certificate, tls_key)
    return run_serve(results, trial, options, family=family)


def demo(
    *,
    results: ResultsOption = RESULTS,
    output: Annotated[
        File | None, Parameter(["--output", "-o"], help="The HTML file to write; RESULTS/demo/report.html if omitted.")
    ] = None,
) -> int:
    """Run the demo study, and write its report and a PNG of its first figure."""
    from scalebench.cli.commands.sweeps import run_demo

    return run_demo(results, output)


def diff(
    old: Annotated[File, Parameter(help="Results folder of the state before.")],
    new: Annotated[File, Parameter(help="Results folder of the state after.")],
    /,
    *,
    where: Where = None,
    margin: float = 0.01,
    other_machine: Annotated[bool, Parameter(negative=())] = False,
    markdown: Annotated[bool, Parameter(negative=())] = False,
    as_json: Json = False,
) -> int:
    """Compare two results folders by configuration: time, memory and loss, with verdicts. Exit code 1 if worse.

    Parameters
    ----------
    margin:
        Changes within this fraction are no change.
    other_machine:
        Compare results of different machines, too.
    markdown:
        Print a Markdown table, for a pull request.
    """
    from scalebench.cli.commands.diff import run_diff

    return run_diff(old, new, where, margin, other_machine=other_machine, markdown=markdown, as_json=as_json)


def show(
    trial: Annotated[
        str | None,
        Parameter(show_default=False, help="Trial id, or the first digits of it.", completer=completions.trials),
    ] = None,
    /,
    *,
    results: ResultsOption = RESULTS,
    as_json: Json = False,
) -> int:
    """Show one trial: configuration, results, log, attempts; without TRIAL, list those that ended, with their ids.

    Exit code 1 if the trial did not end ok.
    """
    from scalebench.cli.commands.show import list_trials, show_trial

    return list_trials(results, as_json=as_json) if trial is None else show_trial(results, trial, as_json=as_json)


def drop(
    study: Annotated[File, Parameter(help="The study's folder, as in results/gpt.")],
    trials: Annotated[list[str], Parameter(help="Trial ids, or their first digits.", completer=completions.trials)],
    /,
) -> int:
    """Forget planned TRIALS without a result of the study in folder STUDY."""
    from scalebench.cli.commands.stored import drop_trials

    return drop_trials(study, trials)
