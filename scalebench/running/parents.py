"""The trials whose weights other trials need ([from], a teacher), looked up and checked before anything runs."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from scalebench import store
from scalebench.data import Data
from scalebench.data.images import Images
from scalebench.errors import InputError, StudyError, number_of
from scalebench.families import FAMILIES, ForeignCodeError
from scalebench.families.outline import outline
from scalebench.running.lineage import check_circle, run_argument, studies_beside, trials_before
from scalebench.study import Parent, ParentSection, Study, Trial
from scalebench.workloads import WORKLOADS, trial_of
from scalebench.workloads.base import Request
from scalebench.workloads.checkpoints import checkpoint_folder, checkpoints
from scalebench.workloads.weights import STATE, WEIGHTS, check_sha256, sha256_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

MOST_VALUES = 6  # of a column, in a message
KEPT = ("weights_sha256", "state_sha256", "parent_flops")  # columns of a trial with weights, which others lack


@dataclass(frozen=True)
class ParentTrial:
    """A finished trial with weights, in the folder ``attempt``, or a checkpoint of its run (then that is its folder).

    ``flops`` is what it, and every parent before it, cost; ``branch_step`` is how many steps lie before a checkpoint.
    ``before`` are the trials before it, newest first, each with its own ``flops``. Without ``starts`` it is the teacher
    of a child that starts from other weights.
    """

    trial_id: str
    study: str
    trial: Trial
    attempt: Path
    identity: Parent
    flops: int
    branch_step: int | None = None
    starts: bool = True
    before: tuple[Mapping[str, Any], ...] = ()

    def ancestors(self) -> list[Mapping[str, Any]]:
        """Return what a child's header has of the trials before it: this one and those before, newest first."""
        return [{"study": self.study, "trial_id": self.trial_id, "flops": self.flops}, *self.before]

    def request(self, request: Request) -> Request:
        """Return a child's request with this parent, for its workload to decide."""
        continues = self.identity.state_sha256 is not None
        return replace(request, parent=self.trial, continues=continues, branch_step=self.branch_step)

    def check_fits(self, model: Mapping[str, Any], config: Any) -> None:
        """Raise ``InputError`` when a child starts from the weights and its model's fields differ from theirs."""
        if not self.starts or model == self.trial.model:
            return
        import torch

        module = outline(FAMILIES[self.trial.family], config)
        expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
        with safetensors.safe_open(str(self.attempt / WEIGHTS), "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        wrong = [name for name, shape in shapes.items() if expected.get(name) != shape]
        if wrong or _numbers(module) != sum(torch.Size(shape).numel() for shape in shapes.values()):
            changed = [key for key in model if model[key] != self.trial.model.get(key)]
            requested, own = (
                ", ".join(f"{key} = {values.get(key)!r}" for key in changed) for values in (model, self.trial.model)
            )
            names = ", ".join(changed)
            raise InputError(
                f"model: {requested}: the weights of {self.trial_id}, with {own}, do not fit another {names}; "
                "leave it out"
            )

    def check_held_out(self, child: Trial, data: Data) -> None:
        """Raise ``InputError`` when a child would be validated on data that this trial was trained on."""
        own, new = self.trial.data, child.data
        if new.source != own.source and new.sha256 != own.sha256:
            return
        reason = f"{self.trial_id} was trained on this source, and {{}} may hold out what it saw; leave it out"
        if new.validation_fraction != own.validation_fraction:
            fact = f"another fraction than {own.validation_fraction}"
            raise InputError(f"data.validation_fraction: {new.validation_fraction}: {reason.format(fact)}")
        seeds = (self.trial.spec.seed, child.spec.seed)
        if isinstance(data, Images) and len({data.fold(own.validation_fraction, seed) for seed in seeds}) > 1:
            fact = f"another seed than {seeds[0]}"
            raise InputError(f"{WORKLOADS[child.workload].TABLE}.seed: {seeds[1]}: {reason.format(fact)}")


def _numbers(module: nn.Module) -> int:
    """Return how many numbers a module's weights file has: persistent buffers, too, and tied parameters once."""
    tensors = module.state_dict(keep_vars=True).values()
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values())


def inherited(
    parent: ParentTrial, model: dict[str, Any], data: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a child's [model] and [data]: its parent's, updated with the fields that the file names.

    A child that starts from other weights has its own [model], by default of the parent's family. Raises
    ``InputError`` for weights of another family.
    """
    own = parent.trial
    family = model.get("family", own.family)
    if parent.starts and family != own.family:
        raise InputError(
            f"model.family: {parent.trial_id}, which [from] names, belongs to family {own.family!r}, not {family!r}"
        )
    about = own.data.model_dump(exclude={"sha256"})
    if data.get("source", own.data.source) != own.data.source:
        del about["vocab_size"]  # of the parent's source
    return {"family": family, **(own.model if parent.starts else {}), **model}, about | data


def find_parents(study: Study, results: Path) -> list[ParentTrial | None]:
    """Return the parents of a study's trials, which [from] or the workload's table names; [None] for a study without.

    Raises ``StudyError`` with one line when there are none, when one changed since it was trained, when the state of
    its run was not kept and is asked for, or when their study needs this one; where running their study makes them, the
    line has the command.
    """
    source = study.parents
    if source is None:
        return [None]
    check_circle(study)
    path = results / source.study if source.study is not None else Path(source.results or "")
    name = "STUDY" if source.study is None else run_argument(study, source.study)
    place = path.parent if source.study is not None else path
    again = f"scalebench run {name} --set run.checkpoint=true --results {shlex.quote(str(place))}"
    try:
        return [replace(parent, starts=source.STARTS) for parent in _parents(source, path, study)]
    except InputError as error:
        key = source.KEY + ("." if str(error).startswith(("optimizer_state:", "step:", "where:")) else ": ")
        reason = f"{error}{studies_beside(path) if source.study is not None else ''}"
        if isinstance(error, NotMadeError):
            retry = f" --retry {','.join(error.retry)}" if error.retry else ""
            both = "" if source.study is None or retry else "; run --with-parents does both"
            reason += f"; to make its parents: {again}{retry}{both}"
        raise StudyError([f"{study.origin}: {key}{reason}"]) from error


class NotMadeError(InputError):
    """Parents that are missing until their study is run; ``retry`` has the statuses of trials to run again."""

    def __init__(self, line: str, retry: Sequence[str] = ()) -> None:
        super().__init__(line)
        self.retry = tuple(retry)


def _parents(source: ParentSection, path: Path, study: Study) -> Iterator[ParentTrial]:
    from scalebench.points.table import select_rows

    candidates, named = _rows(path, study.name), study.axes().get("model.family", ())
    try:
        rows = select_rows(path, candidates, source.where)
    except InputError as error:
        raise InputError(f"where: {error}") from error
    frame = rows[rows["status"].eq("ok")]
    chosen = "" if source.where is None else f" that match {source.where!r}"
    if frame.empty and not rows.empty:
        counts = rows["status"].value_counts()
        listed = ", ".join(f"{number} {status}" for status, number in counts.items())
        raise NotMadeError(f"{path} has no ok trial{chosen}: {listed}", sorted(map(str, counts.index)))
    if frame.empty:
        raise InputError(f"where: no trial of {path} matches {source.where!r}{_values(candidates, source.where)}")
    if source.step is not None:
        yield from _branches(frame, source.step, named, needs_state=source.continues)
        return
    saved = frame[frame["weights_file_bytes"].notna()]
    if saved.empty:
        raise NotMadeError(f"{path} has {number_of(len(frame), 'ok trial')}{chosen}, none of which kept its weights")
    if source.continues:
        trials, saved = len(saved), saved[saved["state_sha256"].notna()]
        if saved.empty:
            fact = f"{path} has {number_of(trials, 'ok trial')} with weights{chosen}"
            raise NotMadeError(f"optimizer_state: {fact}, none of which kept the state of its run")
    for row in _by_trial(saved):
        yield _parent(row, named, needs_state=source.continues)


def _by_trial(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what a parent is made from in each row, ordered by trial."""
    rows = frame.sort_values("trial_id")[["study", "trial_id", "attempt_dir", *KEPT]].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _rows(path: Path, child: str) -> pd.DataFrame:
    """Return the trials in a results folder, except those of the study ``child`` itself."""
    try:
        results = store.read_results(*(folder for folder in store.study_dirs(path) if folder.name != child))
    except store.StoreError as error:
        raise NotMadeError(str(error)) from error
    if results.damaged:
        raise NotMadeError(results.damaged[0])
    frame = results.frame[results.frame["study"].ne(child)]
    if frame.empty:
        raise NotMadeError(f"{path} has no trials except those of {child!r} itself, which cannot start from its own")
    return store.with_columns(frame, ["weights_file_bytes", *KEPT])


def _branches(
    frame: pd.DataFrame, steps: Sequence[int], named: Collection[str], *, needs_state: bool
) -> Iterator[ParentTrial]:
    """Yield the checkpoints of each trial after these numbers of steps."""
    for row in _by_trial(frame):
        for step in steps:
            yield _branch(row, step, named, needs_state=needs_state)


def _branch(row: Mapping[str, Any], step: int, named: Collection[str], *, needs_state: bool) -> ParentTrial:
    """Return one checkpoint as a parent, its files checked against the SHA-256 noted when they were written."""
    attempt, trial_id = Path(str(row["attempt_dir"])), str(row["trial_id"])
    try:
        known, folder = checkpoints(attempt), checkpoint_folder(attempt, step)
    except store.StoreError as error:
        raise NotMadeError(str(error), ["ok"]) from error
    if step not in known:
        have = f"it has {', '.join(map(str, known))}" if known else "it has none (run.checkpoint_steps)"
        raise NotMadeError(f"step: {trial_id} kept no checkpoint after {step} steps; {have}")
    about = known[step]
    _check_unchanged(folder / WEIGHTS, about["weights_sha256"])
    if needs_state:
        _check_unchanged(folder / STATE, about["state_sha256"])
    identity = Parent(
        weights_sha256=about["weights_sha256"], state_sha256=about["state_sha256"] if needs_state else None
    )
    trial = _trial_of(attempt, named)
    until = trial.model_copy(update={"spec": trial.spec.model_copy(update={"steps": step})})
    flops, before = _flops(until, row), trials_before(attempt)
    return ParentTrial(trial_id, str(row["study"]), trial, folder, identity, flops, about["end"], before=before)


def _trial_of(attempt: Path, named: Collection[str]) -> Trial:
    try:
        return trial_of(attempt, named)
    except ForeignCodeError as error:
        raise InputError(f"{attempt.parent.name}: {error}") from error


def _check_unchanged(path: Path, expected: str) -> None:
    """Raise ``NotMadeError`` for a file that changed since its trial ended, which is then to be run again."""
    try:
        check_sha256(path, expected)
    except store.StoreError as error:
        raise NotMadeError(str(error), ["ok"]) from error


def _values(trials: pd.DataFrame, where: str | None) -> str:
    """Return the values of the columns of an expression, for an error message."""
    from scalebench.points.where import parse

    columns = [name for name in parse(where).names if name in trials] if where else []
    each = ((name, list(map(str, trials[name].drop_duplicates().sort_values()))) for name in columns)
    texts = [f"{name} {', '.join(values[:MOST_VALUES])}{', …' * (len(values) > MOST_VALUES)}" for name, values in each]
    return f"; its trials have {' and '.join(texts)}" if texts else ""


def _flops(trial: Trial, row: Mapping[str, Any]) -> int:
    """Return the FLOPs of a trial and of all its parents, which its record has."""
    family = FAMILIES[trial.family]
    counts = family.count(family.Config(**trial.model), getattr(trial.spec, "sequence_length", None))
    import pandas as pd

    before = 0 if pd.isna(row["parent_flops"]) else int(row["parent_flops"])
    return WORKLOADS[trial.workload].cost(trial, counts).flops + before


def _parent(row: Mapping[str, Any], named: Collection[str], *, needs_state: bool) -> ParentTrial:
    """Return one parent, its files checked against the SHA-256 in its record."""
    attempt = Path(str(row["attempt_dir"]))
    hashes: dict[str, str | None] = {"weights": None, "state": None}
    for kind, name in (("weights", WEIGHTS), ("state", STATE))[: 1 + needs_state]:
        recorded = row[f"{kind}_sha256"]
        if not (attempt / name).exists():
            raise NotMadeError(f"{row['trial_id']} has no {name}", ["ok"])
        if isinstance(recorded, str):
            _check_unchanged(attempt / name, recorded)
        hashes[kind] = recorded if isinstance(recorded, str) else sha256_of(attempt / name)
    trial = _trial_of(attempt, named)
    if (reason := getattr(trial.spec, "changed_form", None)) is not None:
        weights = f"its weights are no longer those of a {trial.family} alone"
        raise InputError(f"where: {row['trial_id']} {reason}: {weights}; choose other parents")
    identity = Parent(weights_sha256=str(hashes["weights"]), state_sha256=hashes["state"])
    flops, before = _flops(trial, row), trials_before(attempt)
    return ParentTrial(str(row["trial_id"]), str(row["study"]), trial, attempt, identity, flops, before=before)
