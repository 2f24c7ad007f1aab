"""``scalebench generate``: find a trained model among the results and generate text with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from scalebench import store
from scalebench.cli.output import print_json, say, warn
from scalebench.data import Coder, open_data
from scalebench.errors import MOST_IDS, InputError, beginning, several, unknown
from scalebench.families import FAMILIES, ForeignCodeError
from scalebench.store.trials import trial_folders
from scalebench.study import Trial
from scalebench.workloads import trial_of
from scalebench.workloads.checkpoints import checkpoint_folder, checkpoints
from scalebench.workloads.completion_options import ABILITIES, Request
from scalebench.workloads.weights import WEIGHTS


def run_generate(
    results: Path, trial: str | None, request: Request, *, family: str | None = None, as_json: bool = False
) -> int:
    """Print the text that a trial's model generates; return the exit code. Raises ``InputError`` or ``StoreError``.

    Without ``trial`` the best one is taken and printed to standard error. ``family`` is the Python file of a family of
    the user's own, which a trial may have.
    """
    request.check()
    trained = load_writer(results, trial, family, ABILITIES)
    from scalebench.workloads.completion import WRITERS  # imports torch, which a trial that is refused does not need

    completion = WRITERS[trained.ability](trained.model, trained.data, trained.config, request)
    if as_json:
        about = {"trial": trained.name, "prompt": request.prompt, "seed": request.seed}
        print_json("generate", about | asdict(completion))
    else:
        say(completion.text)
    return 0


class Writer(NamedTuple):
    """A trained model that generates text: the name of its trial, its configuration, tokenizer and capability."""

    name: str
    trial: Trial
    model: Any
    config: Any
    data: Coder
    ability: str


def load_writer(results: Path, trial: str | None, family: str | None, abilities: Sequence[str]) -> Writer:
    """Load a trial's model and tokenizer; without ``trial`` those of the best one, which is printed to standard error.

    Raises ``InputError`` for a trial without weights, whose family has none of the ``abilities``, or whose data is not
    on this machine.
    """
    trial = best_trial(results, abilities) if trial is None else trial
    attempt, checkpoint = find_weights(results, trial)
    try:
        stored = trial_of(attempt, () if family is None else (family,))
    except ForeignCodeError as error:
        raise InputError([f"--trial: {trial}: {error}"]) from error
    if family is not None and stored.family_sha256 is None:
        line = f"has no effect on {trial}, of family {stored.family}; leave it out, or name a --trial of that family"
        raise InputError([f"--family: {family}: {line}"])
    if (reason := getattr(stored.spec, "changed_form", None)) is not None:
        raise InputError([f"--trial: {trial} {reason}, which generates no text; name the trial that it started from"])
    from scalebench.workloads.building import configuration
    from scalebench.workloads.trained import load_trained

    trained, model = load_trained(attempt, checkpoint)
    ability = next((name for name in FAMILIES[trained.family].CAPABILITIES if name in abilities), None)
    data_spec = trained.data
    check_local(trial, data_spec.source)
    data = open_data(data_spec.source, data_spec.vocab_size, data_spec.validation_fraction)
    if ability is None or not isinstance(data, Coder):
        line = f"which cannot generate text (families that can: {', '.join(able_families(abilities))})"
        raise InputError([f"--trial: {trial} has family {trained.family}, {line}"])
    if data.sha256 != trained.data.sha256:
        raise InputError(
            [f"--trial: {trained.data.source} has changed since {trial} was trained; its tokenizer is needed to decode"]
        )
    name = attempt.parent.name if checkpoint is None else f"{attempt.parent.name}/{checkpoint.name}"
    return Writer(name, trained, model, configuration(trained), data, ability)


def able_families(abilities: Sequence[str]) -> list[str]:
    """Return the families that have one of the capabilities."""
    return [name for name, family in FAMILIES.items() if set(family.CAPABILITIES) & set(abilities)]


def check_local(trial: str, data_spec: str) -> None:
    """Raise ``InputError`` for data that would be fetched: a folder of results may come from anyone."""
    name = data_spec.removeprefix("hf:").partition("#")[0]
    if data_spec.startswith("hf:") and not store.expanded(name).is_dir():
        line = f"was trained on {data_spec!a}, which is not on this machine; nothing is downloaded to generate text"
        raise InputError([f"--trial: {trial} {line}; save the data set with save_to_disk and train on its folder"])


def best_trial(results: Path, abilities: Sequence[str]) -> str:
    """Return the id of the trial with the lowest validation loss of those with weights and one of the capabilities.

    Raises ``InputError`` when there is none.
    """
    frame = store.with_columns(store.read_results(results).frame, ["validation_loss_nats", "family", "trial_id"])
    rows = frame[frame["status"].eq("ok") & frame["validation_loss_nats"].notna()].sort_values("validation_loss_nats")
    able = able_families(abilities)
    usable = [
        row for row in rows.to_dict("records") if row["family"] in able and _writes(Path(str(row["attempt_dir"])))
    ]
    if not usable:
        line = "no trial here kept the weights of a model that generates text; run a study such as gpt with"
        raise InputError([f"{results}: {line} --set run.checkpoint=true"])
    best = usable[0]
    loss = f"validation loss {best['validation_loss_nats']:.4g} nats"
    warn(f"{best['study']}/{best['trial_id']}, {loss}: the lowest of {len(usable)} with weights; --trial names another")
    return str(best["trial_id"])


def _writes(attempt: Path) -> bool:
    """Return whether an attempt kept weights that generate text as they are."""
    return (attempt / WEIGHTS).exists() and getattr(trial_of(attempt).spec, "changed_form", None) is None


def find_weights(results: Path, trial: str) -> tuple[Path, Path | None]:
    """Return the newest attempt with weights of the trial whose id starts with ``trial``, under any study.

    The second value is None for the weights at the end of the run, and the folder of a checkpoint for "ID/step-N".
    """
    trial, prefix, step = trial.partition("/")
    folders = trial_folders(results, _kept)
    matches = beginning(trial, folders)
    if len(matches) > 1:
        raise InputError([f"--trial: {several(trial, matches)}"])
    if not matches:
        usable = [name for name, folder in folders.items() if _kept(folder)]
        if not usable:
            line = "no trial here kept its weights; run a study with --set run.checkpoint=true"
            raise InputError([f"--trial: no such trial {trial!r}; {line}"])
        raise InputError([f"--trial: {unknown(trial, usable, MOST_IDS)}; {len(usable)} with weights"])
    steps, attempts = _steps(folders[matches[0]]), _with_weights(folders[matches[0]])
    if prefix:
        if step not in steps:
            have = f"; it has {', '.join(steps)}" if steps else ", as it kept no checkpoints (run.checkpoint_steps)"
            raise InputError([f"--trial: {matches[0]} has no {step!r}{have}"])
        return steps[step].parent, steps[step]
    if not attempts:
        known = " or ".join(f"{matches[0]}/{name}" for name in steps)
        instead = f"name a checkpoint, {known}" if steps else "run its study with --set run.checkpoint=true"
        raise InputError([f"--trial: {matches[0]} kept no weights{' of its end' if steps else ''}; {instead}"])
    return attempts[-1], None


def _kept(folder: Path) -> bool:
    """Return whether a trial kept weights, of its end or of a checkpoint."""
    return bool(_with_weights(folder) or _steps(folder))


def _steps(folder: Path) -> dict[str, Path]:
    """Return the checkpoints of a trial's newest finished attempt that has any, by the names of their folders."""
    for attempt in sorted(folder.glob("attempt-*"), reverse=True):
        folders = {
            path.name: path for step in checkpoints(attempt) if (path := checkpoint_folder(attempt, step)).exists()
        }
        if folders and (attempt / "record.json").exists():
            return folders
    return {}


def _with_weights(folder: Path) -> list[Path]:
    """Return a trial's finished attempts that hold weights, oldest first."""
    attempts = sorted(folder.glob("attempt-*"))
    return [path for path in attempts if (path / "record.json").exists() and (path / WEIGHTS).exists()]
