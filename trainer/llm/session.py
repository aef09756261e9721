# pyright: basic
"""Prepare the training of a language model: load it, read and encode rows, put the trained part in, cut batches."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from shared.contracts.training.llm import LlmSpec
from trainer.data.cache import TensorCache
from trainer.failures import AttemptFailed
from trainer.llm.base_model import Base, load_base
from trainer.llm.batches import BatchOrder, packed_bins
from trainer.llm.held_out import Split, split_rows
from trainer.llm.part import LanguageAdapter, LanguagePart, WholeModel
from trainer.llm.predict import Predictor
from trainer.llm.reference import reference_log_probabilities
from trainer.llm.rows import Row, read_rows
from trainer.llm.tasks import DpoTask, SftTask, digest_of
from trainer.llm.tokens import Encoder, Example
from trainer.llm.validation import Validation
from trainer.session import Prepared, Session
from trainer.train.precision import Precision
from trainer.train.speed import speed_up
from trainer.train.trainee import Trainee

_log = logging.getLogger("trainer.llm")
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class _Encoded:
    """Rows as token ids: one example each for SFT, two for DPO."""

    training: list[list[Example]]
    held_out: list[list[Example]]
    held_out_rows: list[Row]

    @property
    def stops(self) -> set[int]:
        """The tokens that answers end with."""
        ends = Counter(int(examples[0].ids[examples[0].learned.nonzero()[0][-1]]) for examples in self.training)
        return {token for token, count in ends.items() if count * 2 > len(self.training)}


def prepare(session: Session, spec: LlmSpec, precision: Precision) -> Prepared:
    """Everything up to the first step. Raises AttemptFailed or Superseded."""
    split = _rows(session, spec)
    base = load_base(spec, precision)
    session.reporter.phase("caching")
    encoder = Encoder(base.tokenizer, _max_length(spec, base), spec.chat_template)
    encoded = _encoded(session, spec, encoder, split)
    # Seeded here and not earlier: what was loaded before must not change the adapter's first values.
    torch.manual_seed(spec.seed)
    noise = torch.Generator().manual_seed(spec.seed)
    part: LanguagePart = WholeModel(base) if spec.model_type == "full" else LanguageAdapter(base, spec)
    task, evaluate, batches_per_epoch = _task(session, spec, precision, base, part, encoder, encoded)
    spec, total_steps = _lengths(spec, batches_per_epoch)
    speed_up(part.model, precision.device, spec)
    trainee = Trainee(part, task, spec, precision, noise, total_steps)
    predictor = None
    if spec.predictions_enabled and encoded.held_out_rows:
        rows = [row for row in encoded.held_out_rows if row.prompt][: spec.prediction_count]
        stops = {base.tokenizer.eos_token_id, *_ids(base.generation_config.eos_token_id), *encoded.stops}
        predictor = Predictor(part.model, encoder, rows, spec.prediction_max_length, sorted(stops)) if rows else None
    validation = Validation(trainee, spec, evaluate, predictor, session.reporter)

    def companions(folder: Path) -> list[Path]:
        return _companions(spec, part, base, folder)

    return Prepared(trainee, validation.look, _facts(spec), companions)


def _rows(session: Session, spec: LlmSpec) -> Split:
    refs = {ref.id: ref for ref in session.job.run.datasets}
    training: list[Row] = []
    own: list[Row] = []
    for dataset in session.job.text_datasets:
        ref = refs.get(dataset.id)
        if ref is not None and session.fetcher is not None:
            source = session.fetcher.dataset(ref, session.work_dir / "datasets")
        else:
            source = Path(dataset.instance_data_dir).expanduser()
        found = read_rows(dataset, source, spec.method)
        rows = found.rows[: dataset.max_num_samples]
        formats = ", ".join(sorted(set(found.formats.values())))
        _log.info("dataset %s: %d rows (%s), %d twice", dataset.id, len(rows), formats, found.duplicates)
        if found.duplicates:
            session.reporter.warning("duplicate_rows", f"dataset {dataset.id} has {found.duplicates} rows twice")
        (own if dataset.evaluation else training).extend(rows)
    wanted = spec.prediction_count if spec.predictions_enabled else 0
    return split_rows(training, own, spec.eval_split, wanted, spec.seed)


def _max_length(spec: LlmSpec, base: Base) -> int:
    longest = getattr(base.model.config, "max_position_embeddings", None)
    return min(spec.max_length, longest) if isinstance(longest, int) else spec.max_length


def _encoded(session: Session, spec: LlmSpec, encoder: Encoder, split: Split) -> _Encoded:
    training = _examples(session, spec, encoder, split.training, "training")
    held_out = _examples(session, spec, encoder, split.held_out, "held-out")
    examples = [example for each in training for example in each]
    lengths = [len(example) for example in examples]
    marks = ", ".join(f"p{part} {round(float(np.percentile(lengths, part)))}" for part in _PERCENTILES)
    _log.info(
        "%d rows to train on, %d held out; tokens of an example: %s, longest %d; %d tokens are learned in an epoch",
        len(training), len(held_out), marks, max(lengths), sum(example.label_count for example in examples),
    )  # fmt: skip
    return _Encoded(training, held_out, split.held_out)


def _examples(session: Session, spec: LlmSpec, encoder: Encoder, rows: list[Row], kind: str) -> list[list[Example]]:
    """Encoded rows, without those that have nothing to learn within the length. Raises AttemptFailed(bad_data)."""
    kept: list[list[Example]] = []
    cut, empty = 0, list[str]()
    for row in rows:
        session.control.raise_if_superseded()
        examples = encoder.examples(row, learn_all=not spec.completion_only_loss and spec.method == "sft")
        cut += any(example.truncated for example in examples)
        if all(example.label_count for example in examples):
            kept.append(examples)
        else:
            empty.append(row.place)
    advice = "Raise max_length, or shorten the prompts of these rows."
    where = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")  # noqa: PLR2004
    if rows and not kept:
        message = f"no {kind} row has a learned token within {encoder.max_length} tokens: {where}"
        raise AttemptFailed("bad_data", message, advice)
    if empty:
        message = f"{len(empty)} {kind} rows have no learned token within {encoder.max_length} tokens: {where}"
        session.reporter.warning("rows_left_out", f"{message}. {advice}")
    if cut:
        session.reporter.warning("rows_truncated", f"{cut} {kind} rows are cut at {encoder.max_length} tokens")
    return kept


def _task(
    session: Session, spec: LlmSpec, precision: Precision, base: Base, part: LanguagePart, encoder: Encoder,
    encoded: _Encoded,
) -> tuple[SftTask | DpoTask, Callable[[], dict[str, float]], int]:  # fmt: skip
    """The task, how to evaluate it, and its batches in one epoch."""
    identity = {
        "base": base.fingerprint,
        "dataset": digest_of([example for each in encoded.training for example in each]),
        "method": spec.method,
        "packing": spec.packing,
    }
    if spec.method == "dpo":
        task, evaluate = _dpo(session, spec, precision, part, encoder, encoded, identity)
        return task, evaluate, task.batches_per_epoch
    examples = [each[0] for each in encoded.training]
    rows = [[example] for example in examples]
    if spec.packing:
        bins = packed_bins([len(example) for example in examples], encoder.max_length)
        rows = [[examples[index] for index in members] for members in bins]
        _log.info(
            "%d examples are packed into %d rows of up to %d tokens", len(examples), len(bins), encoder.max_length
        )
    order = BatchOrder([sum(map(len, row)) for row in rows], spec.train_batch_size, spec.seed)
    task = SftTask(part.model, rows, order, spec, precision, encoder.pad_id, identity)
    held_out = [each[0] for each in encoded.held_out]
    return task, lambda: task.evaluate(held_out), task.batches_per_epoch


def _dpo(
    session: Session, spec: LlmSpec, precision: Precision, part: LanguagePart, encoder: Encoder, encoded: _Encoded,
    identity: dict[str, object],
) -> tuple[DpoTask, Callable[[], dict[str, float]]]:  # fmt: skip
    pairs, held_out = ([(each[0], each[1]) for each in some] for some in (encoded.training, encoded.held_out))
    lengths = [max(map(len, pair)) for pair in pairs]
    order = BatchOrder(lengths, spec.train_batch_size, spec.seed)
    task = DpoTask(part.model, pairs, order, spec, precision, encoder.pad_id, identity)
    if not spec.reference_free:
        cache, base_id = TensorCache(session.cache_dir), f"{identity['base']}/{precision.dtype}/{spec.quantization}"
        task.reference = reference_log_probabilities(task, part, pairs, base_id, cache, session.control)
        task.held_out_reference = reference_log_probabilities(task, part, held_out, base_id, cache, session.control)
    return task, lambda: task.evaluate(held_out)


def _lengths(spec: LlmSpec, batches_per_epoch: int) -> tuple[LlmSpec, int]:
    """The spec with what was given in epochs and shares counted in steps, and the number of steps."""
    steps_per_epoch = max(1, math.ceil(batches_per_epoch / spec.gradient_accumulation_steps))
    total = spec.max_train_steps or math.ceil(
        spec.num_train_epochs * batches_per_epoch / spec.gradient_accumulation_steps
    )
    return msgspec.structs.replace(
        spec,
        lr_warmup_steps=spec.lr_warmup_steps or math.ceil(spec.warmup_ratio * total),
        validation_step_interval=steps_per_epoch if spec.validate_each_epoch else spec.validation_step_interval,
        checkpoint_step_interval=steps_per_epoch if spec.save_each_epoch else spec.checkpoint_step_interval,
    ), total


def _ids(value: int | list[int] | None) -> Sequence[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _companions(spec: LlmSpec, part: LanguagePart, base: Base, folder: Path) -> list[Path]:
    """The tokenizer's files beside the result, and a merged model when it is wanted."""
    before = set(folder.rglob("*"))
    base.tokenizer.save_pretrained(folder)
    if spec.merge_and_save:
        part.write_merged(folder / "merged")
        base.tokenizer.save_pretrained(folder / "merged")
    return sorted(path for path in set(folder.rglob("*")) - before if path.is_file())


def _facts(spec: LlmSpec) -> dict[str, str]:
    """What other tools read in the file."""
    facts = {
        "modelspec.architecture": f"causal-lm/{'lora' if spec.model_type == 'lora' else 'full'}",
        "modelspec.implementation": "transformers",
        "modelspec.title": f"{spec.method.upper()} of {spec.pretrained_model_name_or_path}",
        "tunewright.method": spec.method,
    }
    if spec.model_type == "lora":
        facts.update(ss_network_dim=str(spec.lora_rank), ss_network_alpha=f"{spec.effective_lora_alpha:g}")
    return facts
