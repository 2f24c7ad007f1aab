"""``scalebench generate``: find a trained model among the results and generate text with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scalebench import store
from scalebench.cli.output import say
from scalebench.data import Coder, open_data
from scalebench.errors import InputError, unknown
from scalebench.families import FAMILIES
from scalebench.workloads import trial_of
from scalebench.workloads.weights import WEIGHTS

if TYPE_CHECKING:
    from scalebench.workloads.completion_options import Request

SHOWN_TRIALS = 10


def run_generate(results: Path, trial: str, request: Request) -> int:
    """Print the text that a trial's model generates; return the exit code. Raises ``InputError`` or ``StoreError``."""
    request.check()
    attempt = find_weights(results, trial)
    if (reason := getattr(trial_of(attempt).spec, "changed_form", None)) is not None:
        raise InputError([f"--trial: {trial} {reason}, which generates no text; name the trial that it started from"])
    from scalebench.workloads.building import configuration
    from scalebench.workloads.completion import WRITERS
    from scalebench.workloads.trained import load_trained

    trained, model = load_trained(attempt)
    family = FAMILIES[trained.family]
    ability = next((name for name in family.CAPABILITIES if name in WRITERS), None)
    asked = trained.data
    check_local(trial, asked.source)
    data = open_data(asked.source, asked.vocab_size, asked.validation_fraction)
    if ability is None or not isinstance(data, Coder):
        able = [name for name, other in FAMILIES.items() if set(other.CAPABILITIES) & set(WRITERS)]
        line = f"which cannot generate text (families that can: {', '.join(able)})"
        raise InputError([f"--trial: {trial} is of family {trained.family}, {line}"])
    if data.sha256 != trained.data.sha256:
        raise InputError(
            [f"--trial: {trained.data.source} has changed since {trial} was trained; its tokenizer is needed to decode"]
        )
    say(WRITERS[ability](model, data, configuration(trained), request))
    return 0


def check_local(trial: str, source: str) -> None:
    """Raise ``InputError`` for data that would be fetched: a folder of results may come from anyone."""
    name = source.removeprefix("hf:").partition("#")[0]
    if source.startswith("hf:") and not Path(name).expanduser().is_dir():
        line = f"was trained on {source!a}, which is not on this machine; nothing is downloaded to generate text"
        raise InputError([f"--trial: {trial} {line}; save the data set with save_to_disk and train on its folder"])


def find_weights(results: Path, trial: str) -> Path:
    """Return the newest attempt with weights of the trial whose id starts with ``trial``, under any study."""
    folders = {path.name: path for study in store.study_dirs(results) for path in sorted((study / "trials").iterdir())}
    found = [name for name in folders if name.startswith(trial)] if trial else []
    if len(found) > 1:
        raise InputError([f"--trial: {trial} begins {len(found)} ids: {', '.join(found[:SHOWN_TRIALS])}"])
    if not found:
        kept = [name for name, folder in folders.items() if _kept(folder)]
        if not kept:
            line = "no trial here kept its weights; run a study with --set run.checkpoint=true"
            raise InputError([f"--trial: no such trial {trial!r}; {line}"])
        raise InputError([f"--trial: {unknown(trial, kept[:SHOWN_TRIALS])}; {len(kept)} trials have weights"])
    attempts = _kept(folders[found[0]])
    if not attempts:
        raise InputError([f"--trial: {found[0]} kept no weights; run its study with --set run.checkpoint=true"])
    return attempts[-1]


def _kept(folder: Path) -> list[Path]:
    """Return a trial's finished attempts that hold weights, oldest first."""
    attempts = sorted(folder.glob("attempt-*"))
    return [path for path in attempts if (path / "record.json").exists() and (path / WEIGHTS).exists()]
