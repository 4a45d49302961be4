"""The stage itself, top to bottom: find the model, check the data, count, fetch, stage, look for a result.

Order matters. Whatever can fail for the user's reasons comes before what takes long: a bad line 17 is
reported before gigabytes of weights are fetched. Everything is idempotent, so an interrupted stage simply
runs again.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import layout
from finetune_trainer.config import MOUNT_ROOT, PrepareConfig
from finetune_trainer.errors import DataError, PreemptedError, TrainerError, UserFaultError, shorten
from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.fingerprint import fingerprint_model
from finetune_trainer.messages import (
    DatasetFacts,
    Line,
    ModelFacts,
    Phase,
    PhaseLine,
    PrepareTermination,
    PublishedResult,
    WarningLine,
    fit_termination_message,
)
from finetune_trainer.outcome import last_traceback_line
from finetune_trainer.prepare.dataset import Dataset, canonical_lines, read_dataset
from finetune_trainer.prepare.errors import readable_by_the_pod
from finetune_trainer.prepare.hub import Hub, forget_download_state
from finetune_trainer.prepare.locations import (
    FileLocation,
    HubLocation,
    Location,
    check_inside_mount,
    parse_dataset_location,
    parse_file_location,
    parse_model_location,
)
from finetune_trainer.prepare.model import FIELD as MODEL_FIELD
from finetune_trainer.prepare.model import (
    WEIGHT_SUFFIX,
    ModelCheck,
    check_configuration,
    check_model,
    needed_files,
)
from finetune_trainer.prepare.packing import pack_rows
from finetune_trainer.prepare.split import Split, data_digest, split_rows
from finetune_trainer.prepare.staging import Cache, publish_folder, write_file
from finetune_trainer.prepare.stop import Stop
from finetune_trainer.prepare.tokens import RowCounter, TokenCount, count_tokens
from finetune_trainer.progress import stamped
from finetune_trainer.result import DamagedResultError, ForeignResultError, Lineage, find_result
from finetune_trainer.store import STORE_ERRORS, Store

DATASET_FIELD = "spec.dataset"
EVAL_FIELD = "spec.dataset.eval"
_MESSAGE_LIMIT = 2000
_WARNING_LIMIT = 8  # of PrepareTermination
_WORTHWHILE_SAVING = 0.1
"""Share of the sequences that packing should save."""


def run_prepare(config: PrepareConfig, termination_path: Path, mount_root: Path = Path(MOUNT_ROOT)) -> int:
    """Run the stage and write its last word; the exit code. Never raises on purpose."""
    stop = Stop()
    with stop.handling_sigterm():
        code, termination = _outcome(config, mount_root, stop)
    write_termination(termination, termination_path)
    return code


def write_termination(termination: PrepareTermination, path: Path) -> None:
    """Leave the message for the kubelet; where that fails the log must do."""
    text = fit_termination_message(termination)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        _say(WarningLine(message=f"{path} cannot be written ({error}); the message is: {text}"))


def _outcome(config: PrepareConfig, mount_root: Path, stop: Stop) -> tuple[ExitCode, PrepareTermination]:
    """Map what happened to an exit code; the only place that does."""
    warnings: list[str] = []
    try:
        return ExitCode.OK, Stage(config, mount_root, stop, warnings).run()
    except TrainerError as error:
        fault = error.fault if isinstance(error, UserFaultError) else None
        return error.exit_code, PrepareTermination(
            outcome="Preempted" if isinstance(error, PreemptedError) else "Failed",
            cause=error.cause,
            message=shorten(fault.message if fault else str(error), _MESSAGE_LIMIT),
            fault=fault,
            warnings=warnings,
        )
    except Exception as error:
        traceback.print_exc()
        message = shorten(last_traceback_line(error), _MESSAGE_LIMIT)
        return ExitCode.ERROR, PrepareTermination(
            outcome="Failed", cause="Application", message=message, warnings=warnings
        )


@dataclass(frozen=True)
class _Model:
    """The model before it is fetched."""

    location: Location
    folder: Path
    """Where it lies, or will lie once it is staged."""
    commit: str = ""
    files: tuple[str, ...] = ()
    """What is still to be fetched."""


class Stage:
    """One execution for one configuration."""

    def __init__(self, config: PrepareConfig, mount_root: Path, stop: Stop, warnings: list[str]) -> None:
        """Warnings are added to the caller's list, for they belong to a failure's report as well."""
        self._config = config
        self._mount_root = mount_root
        self._stop = stop
        self._warnings = warnings
        self._cache = Cache(parse_file_location("cacheUri", config.cache_uri).path, config.job)
        self._hub = Hub(stop, config.allowed_uri_prefixes)

    def run(self) -> PrepareTermination:
        """The whole stage.

        Raises:
            TrainerError: see :mod:`finetune_trainer.errors`.
        """
        try:
            return self._run()
        except DataError:
            self._cache.clean()  # nobody comes back for it; an interrupted download is kept
            raise

    def _run(self) -> PrepareTermination:
        self._phase("model")
        model = self._locate_model()
        self._phase("dataset")
        dataset, split = self._read_data()
        self._phase("fetch")
        folder = self._fetch_configuration(model)
        train, held_out, lengths = self._count_tokens(folder, dataset, split)
        self._fetch_weights(model, folder)
        check = self._check_model(model)
        self._phase("stage")
        model_facts = self._model_facts(model, check)
        dataset_facts = self._stage_data(dataset, split, train, held_out, lengths)
        result = self._published_result(dataset_facts.digest, model_facts.digest)
        self._cache.clean()
        return PrepareTermination(
            outcome="Succeeded",
            model=model_facts,
            dataset=dataset_facts,
            result=result,
            warnings=self._warnings,
        )

    # --- the model ---

    def _locate_model(self) -> _Model:
        """Find it and look at its file names, before anything is fetched."""
        location = parse_model_location(self._config.model_uri)
        if isinstance(location, FileLocation):
            check_inside_mount(MODEL_FIELD, location.path, self._mount_root)
            return _Model(location, location.path)
        if location.is_pinned:
            folder = self._cache.model_folder(location.repository, location.revision)
            if folder.is_dir():
                return _Model(location, folder, location.revision)
        snapshot = self._hub.snapshot(MODEL_FIELD, location)
        files = tuple(needed_files(snapshot.files))
        return _Model(location, self._cache.model_folder(location.repository, snapshot.commit), snapshot.commit, files)

    def _fetch_configuration(self, model: _Model) -> Path:
        """Check all but the weights, fetched now if need be; the folder that holds them."""
        if not isinstance(model.location, HubLocation) or model.folder.is_dir():
            self._check_model(model)
            return model.folder
        partial = self._cache.partial(f"model-{model.commit}")
        small = [name for name in model.files if not name.endswith(WEIGHT_SUFFIX)]
        self._hub.fetch(MODEL_FIELD, model.location, model.commit, small, partial)
        check_configuration(partial)
        return partial

    def _fetch_weights(self, model: _Model, partial: Path) -> None:
        """Complete a hub's model and give it its place in the cache; one on a volume is used in place."""
        if not isinstance(model.location, HubLocation) or model.folder.is_dir():
            return
        weights = [name for name in model.files if name.endswith(WEIGHT_SUFFIX)]
        self._hub.fetch(MODEL_FIELD, model.location, model.commit, weights, partial)
        check_model(partial)
        forget_download_state(partial)
        publish_folder(partial, model.folder)

    def _check_model(self, model: _Model) -> ModelCheck:
        in_place = isinstance(model.location, FileLocation)
        with readable_by_the_pod(MODEL_FIELD):
            return check_model(model.folder, self._mount_root if in_place else None)

    def _model_facts(self, model: _Model, check: ModelCheck) -> ModelFacts:
        with readable_by_the_pod(MODEL_FIELD):
            digest = fingerprint_model(model.folder)
        in_place = isinstance(model.location, FileLocation)
        return ModelFacts(
            architecture=check.architecture,
            parameters=check.parameters,
            weight_bytes=check.weight_bytes,
            dtype=check.dtype,
            staged_uri=self._config.model_uri if in_place else model.folder.as_uri(),
            revision=model.commit,
            digest=digest,
        )

    # --- the dataset ---

    def _read_data(self) -> tuple[Dataset, Split]:
        """Read, check and split."""
        config = self._config
        if config.eval_uri is not None and config.eval_fraction > 0:
            raise DataError(
                f"{DATASET_FIELD}.evalFraction",
                str(config.eval_fraction),
                "spec.dataset must have at most one of: eval, evalFraction",
                "remove one of them",
            )
        dataset = self._read_file(DATASET_FIELD, config.dataset_uri)
        if config.eval_uri is None:
            split = split_rows(dataset.rows, config.eval_fraction, config.seed)
        else:
            split = Split(dataset.rows, self._read_eval(dataset, config.eval_uri).rows)
        if shared := split.shared():
            self._warn(f"{shared} of {len(split.eval)} held-out rows are training rows as well: evalLoss is too low")
        return dataset, split

    def _read_eval(self, dataset: Dataset, uri: str) -> Dataset:
        held_out = self._read_file(EVAL_FIELD, uri)
        if held_out.format != dataset.format:
            raise DataError(
                EVAL_FIELD,
                held_out.format,
                f"the held-out rows have the format {held_out.format}, the training rows {dataset.format}",
                "use one format in both files",
            )
        return held_out

    def _read_file(self, field: str, uri: str) -> Dataset:
        file = self._dataset_file(field, parse_dataset_location(field, uri))
        with readable_by_the_pod(field):
            dataset = read_dataset(field, file, self._stop)
        for warning in dataset.warnings:
            self._warn(f"{field}: {warning}")
        return dataset

    def _dataset_file(self, field: str, location: Location) -> Path:
        """The file on the volume, or a copy that this job alone keeps while it runs."""
        if isinstance(location, FileLocation):
            check_inside_mount(field, location.path, self._mount_root)
            return location.path
        commit = self._hub.snapshot(field, location).commit  # asked of a pinned one too: it may have moved
        folder = self._cache.partial(f"data-{commit}")
        self._hub.fetch(field, location, commit, [location.path], folder)
        return folder / location.path

    def _count_tokens(self, folder: Path, dataset: Dataset, split: Split) -> tuple[TokenCount, TokenCount, list[int]]:
        """Render and tokenize every row as the trainer will; training rows, held-out rows, each training row."""
        limit = self._config.max_length
        with readable_by_the_pod(MODEL_FIELD):
            counter = RowCounter(folder, dataset.format, limit)
        lines = eval_lines = counter.measure(DATASET_FIELD, dataset.rows, self._stop)
        if self._config.eval_uri is not None:
            eval_lines = counter.measure(EVAL_FIELD, split.eval, self._stop)
        train_rows = [lines[row.line] for row in split.train]
        train = count_tokens(train_rows, limit)
        held_out = count_tokens((eval_lines[row.line] for row in split.eval), limit)
        self._check_length("training", train)
        self._check_length("held-out", held_out)
        rows = train.rows + held_out.rows
        if over := train.over_limit + held_out.over_limit:
            self._warn(f"{over} of {rows} rows are longer than maxLength ({limit} tokens) and will be cut")
        if lost := train.unlabelled + held_out.unlabelled:
            self._warn(f"of {lost} of {rows} rows nothing of the answer is left within maxLength: they teach nothing")
        return train, held_out, [row.total for row in train_rows]

    def _check_length(self, kind: str, count: TokenCount) -> None:
        if not count.rows or count.unlabelled < count.rows:
            return
        raise DataError(
            f"{DATASET_FIELD}.maxLength",
            str(self._config.max_length),
            f"every one of the {count.rows} {kind} rows is cut before its answer begins",
            f"raise maxLength: the longest row has {count.longest} tokens; or shorten the prompts",
        )

    def _stage_data(
        self, dataset: Dataset, split: Split, train: TokenCount, held_out: TokenCount, lengths: list[int]
    ) -> DatasetFacts:
        """Write; the folder's name is the content's digest."""
        digest = data_digest(dataset.format, split)
        uri = layout.data_uri(self._config.cache_uri, digest)
        folder = self._cache.data_folder(digest)
        write_file(folder / "train.jsonl", canonical_lines(split.train))
        if split.eval:
            write_file(folder / "eval.jsonl", canonical_lines(split.eval))
        packs = self._pack(lengths) if self._config.packing else None
        packs_name = self._stage_packs(folder, packs) if packs is not None else None
        return DatasetFacts(
            format=dataset.format,
            train_rows=len(split.train),
            eval_rows=len(split.eval),
            train_tokens=train.total,
            eval_tokens=held_out.total,
            longest_row_tokens=max(train.longest, held_out.longest),
            train_uri=layout.join(uri, "train.jsonl"),
            eval_uri=layout.join(uri, "eval.jsonl") if split.eval else None,
            packs_uri=layout.join(uri, packs_name) if packs_name is not None else None,
            train_packs=len(packs) if packs is not None else None,
            digest=digest,
        )

    def _pack(self, lengths: list[int]) -> list[list[int]]:
        """Lay several training rows into one sequence."""
        self._stop.check()
        packs = pack_rows(lengths, self._config.max_length)
        if len(packs) > (1 - _WORTHWHILE_SAVING) * len(lengths):
            self._warn(
                f"packing makes {len(packs)} sequences of {len(lengths)} rows, which saves little: raise maxLength"
                f" ({self._config.max_length} tokens), or leave packing out"
            )
        return packs

    def _stage_packs(self, folder: Path, packs: list[list[int]]) -> str:
        """Write; the file's name says its content, for maxLength and tokenizer differ between jobs of the same data."""
        text = json.dumps(packs, separators=(",", ":")).encode() + b"\n"
        name = layout.packs_name(hashlib.sha256(text).hexdigest())
        write_file(folder / name, [text])
        return name

    # --- the result of an earlier run ---

    def _published_result(self, data: str, model: str) -> PublishedResult | None:
        run = self._config.run.digest
        uri = layout.result_uri(self._config.output_uri, run, data, model)
        if uri.startswith("file:") and not parse_file_location("outputUri", uri).path.is_dir():
            return None  # opening it would make the folder
        try:
            result = find_result(Store(uri), Lineage(run, data, model))
        except ForeignResultError:
            return None  # folders carry twelve digits of each digest, manifests all of them
        except (DamagedResultError, *STORE_ERRORS) as error:
            self._warn(f"the published result at {uri} is not used, this run trains again: {error}")
            return None
        if result is not None:
            _say(result)
        return result

    # --- what is said on the way ---

    def _phase(self, phase: Phase) -> None:
        self._stop.check()
        _say(PhaseLine(phase=phase))

    def _warn(self, message: str) -> None:
        _say(WarningLine(message=message))
        if len(self._warnings) < _WARNING_LIMIT:
            self._warnings.append(shorten(message, 300))


def _say(line: Line) -> None:
    """One JSON line on stdout."""
    print(stamped(line), flush=True)
