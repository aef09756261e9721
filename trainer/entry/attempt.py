"""Run one attempt inside this process: spool and threads around the session, and an exit code for every ending."""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shared.contracts.run import ExitCode, RunSpec
from trainer.config.job import checked_job, read_run_spec
from trainer.control import COMMANDS, Control
from trainer.failures import AttemptFailed, Superseded
from trainer.fetch import Fetcher
from trainer.patience import Patience
from trainer.publish.credentials import Outside, outside_from
from trainer.publish.deliveries import Deliveries
from trainer.publish.publisher import Publisher
from trainer.publish.upload import GatewayStore, LocalStore
from trainer.report.events import RedactingFormatter, Redactor, Reporter, SpoolLogHandler
from trainer.report.gateway import Gateway, Token
from trainer.report.sender import Sender
from trainer.report.spool import Spool

_log = logging.getLogger("trainer")
_LAST_TRY_S = 5.0
_LIMIT_DRAIN_S = 240.0
"""How long to deliver after the time limit: providers end the machine a few minutes later."""
_NOTICES_OF_NO_USE = ("torchao", "torch.utils._pytree")
"""Libraries that warn at import about kernels and interfaces that nobody asked for; their errors still come through."""
OUTBOX = "outbox.jsonl"
"""Below the work folder: the report lines that the gateway never took, once the attempt has ended."""


def _seconds_from(name: str, default_s: float) -> float:
    return float(os.environ.get(name, default_s))


def _limit_from(name: str) -> float | None:
    return float(os.environ[name]) if os.environ.get(name) else None


@dataclass(frozen=True)
class Options:
    """How an attempt is started. `token` is used when there is no `token_file`. Times are seconds."""

    spec_path: Path
    work_dir: Path
    token_file: Path | None = None
    token: str = ""
    device: str = "auto"
    offline: bool = False
    cache_dir: Path | None = None
    drain_s: float = field(default_factory=lambda: _seconds_from("TRAINER_DRAIN_S", 600))
    grace_s: float = field(default_factory=lambda: _seconds_from("TRAINER_GRACE_S", 25))
    fetch_s: float = field(default_factory=lambda: _seconds_from("TRAINER_FETCH_S", 600))
    max_run_s: float | None = field(default_factory=lambda: _limit_from("TRAINER_MAX_RUN_S"))
    checkpoint_every_s: float | None = field(default_factory=lambda: _limit_from("TRAINER_CHECKPOINT_EVERY_S"))


@dataclass
class _Surroundings:
    """The parts that live as long as the attempt; gateway, sender and fetcher are None when run alone."""

    options: Options
    run: RunSpec
    control: Control
    reporter: Reporter
    publisher: Publisher
    sender: Sender | None
    fetcher: Fetcher | None
    outside: Outside

    def drain(self, patience: Patience) -> None:
        """Deliver what is left of the spool; what is not delivered stays on disk."""
        if self.sender is not None:
            patience.at_least(_LAST_TRY_S)
            self.sender.drain(patience)

    def abandon(self, failure: AttemptFailed) -> None:
        """Say the last word and end the process: its main thread waits for something that never comes."""
        self.reporter.emit("failed", kind=failure.kind, message=failure.message, advice=failure.advice)
        self.drain(Patience(self.control, _LAST_TRY_S, _LAST_TRY_S))
        os._exit(failure.exit_code)


def run_attempt(options: Options, control: Control) -> ExitCode:
    """Run to an end of any kind. Never raises for a failed attempt: the exit code and the spool tell."""
    try:
        run = read_run_spec(options.spec_path)
    except AttemptFailed as failure:
        _log.error("%s", failure.message)
        return failure.exit_code
    token = Token(options.token_file, options.token)
    if run.gateway_url is not None and not options.offline and not token.value:
        _log.error("there is no token: give --token-file or TRAINER_TOKEN, or run with --offline")
        return ExitCode.BAD_CONFIG
    control.limit(options.max_run_s, options.checkpoint_every_s)
    with _surroundings(options, run, control) as around:
        control.abandon = around.abandon
        if around.reporter.spool.last_type == "done":
            # Killed after the end: training is over, only the delivery of reports is left.
            around.drain(Patience(control, options.drain_s, options.grace_s))
            return ExitCode.DONE
        return _run_to_an_end(around)


def _run_to_an_end(around: _Surroundings) -> ExitCode:
    try:
        _train_and_deliver(around)
    except Superseded:
        _log.warning("another attempt has taken over; stopping without uploading")
        return ExitCode.SUPERSEDED
    except AttemptFailed as failure:
        return _fail(around, failure)
    except Exception as error:  # noqa: BLE001 -- the border of the process: every bug must become a report
        _log.exception("the attempt failed for an internal reason")
        advice = "This is a fault of the trainer; the log has the details. Starting the job again may help."
        return _fail(around, AttemptFailed("internal", f"{type(error).__name__}: {error}", advice))
    return ExitCode.DONE


def _train_and_deliver(around: _Surroundings) -> None:
    options = around.options
    job = checked_job(around.run)
    # Imported here: torch takes seconds to load, and signals and a refused config must not wait for it.
    from trainer.entry.session import run  # noqa: PLC0415
    from trainer.session import Session  # noqa: PLC0415

    deliveries = Deliveries(job.training.delivery, around.outside, around.reporter, around.control)
    try:
        publishing = run(
            Session(
                job=job,
                work_dir=options.work_dir,
                cache_dir=options.cache_dir or options.work_dir / "cache",
                device=options.device,
                reporter=around.reporter,
                publisher=around.publisher,
                fetcher=around.fetcher,
                control=around.control,
                deliveries=deliveries,
            )
        )
        patience = Patience(around.control, options.drain_s, options.grace_s)
        undelivered = around.publisher.wait(patience)
        around.control.raise_if_superseded()
        # Told before the end, for the machine may be gone after it; ours above comes first and is waited for longest.
        deliveries.wait(patience)
        around.control.raise_if_superseded()
    finally:
        deliveries.close()
    if undelivered and around.control.stop.is_set():
        raise AttemptFailed("preempted", "stopped while delivering results", "The job goes on from its checkpoint.")
    around.reporter.carried_out(around.control.carried_out(*COMMANDS), outcome="too_late")
    around.reporter.emit(
        "done",
        steps=publishing.trainee.step,
        final_loss=publishing.trainee.last_loss,
        artifacts=publishing.artifacts,
        undelivered=undelivered,
    )
    around.drain(patience)
    around.control.raise_if_superseded()


def _fail(around: _Surroundings, failure: AttemptFailed) -> ExitCode:
    """Deliver what can be delivered (a checkpoint above all), report, and return the exit code."""
    _log.error("%s: %s", failure.kind, failure.message)
    drain_s = around.options.drain_s
    patience = Patience(
        around.control, min(drain_s, _LIMIT_DRAIN_S) if around.control.time_is_up else drain_s, around.options.grace_s
    )
    around.publisher.wait(patience)
    if around.control.superseded.is_set():
        return ExitCode.SUPERSEDED
    reporter, control = around.reporter, around.control
    if failure.kind == "preempted":
        reporter.carried_out(control.carried_out("stop"))
    reporter.carried_out(control.carried_out(*COMMANDS), outcome="too_late")
    reporter.emit("failed", kind=failure.kind, message=failure.message, advice=failure.advice)
    around.drain(patience)
    return ExitCode.SUPERSEDED if around.control.superseded.is_set() else failure.exit_code


@contextmanager
def _surroundings(options: Options, run: RunSpec, control: Control) -> Generator[_Surroundings]:
    """Open the spool, start the threads, and close everything in the reverse order."""
    redactor = Redactor()
    outside = outside_from(os.environ)
    for secret in outside.secrets():
        redactor.learn(secret)
    spool = Spool(options.work_dir, run.job_id, run.attempt_id)
    reporter = Reporter(spool, redactor)
    handlers = _add_log_handlers(reporter, redactor)
    gateway: Gateway | None = None
    sender: Sender | None = None
    fetcher: Fetcher | None = None
    if run.gateway_url is not None and not options.offline:
        gateway = Gateway(run.gateway_url, Token(options.token_file, options.token, redactor.learn))
        sender = Sender(reporter, gateway, run.attempt_id, control)
        fetcher = Fetcher(gateway, control, options.fetch_s)
        sender.start()
        store = GatewayStore(gateway, run.output_bucket, run.output_prefix)
    else:
        store = LocalStore(options.work_dir)
    publisher = Publisher(store, reporter, control)
    publisher.start()
    try:
        yield _Surroundings(options, run, control, reporter, publisher, sender, fetcher, outside)
    finally:
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
        publisher.close()
        if sender is not None:
            sender.close()
            spool.leave_outbox(options.work_dir / OUTBOX)
        if gateway is not None:
            gateway.close()
        spool.close()


def _add_log_handlers(reporter: Reporter, redactor: Redactor) -> list[logging.Handler]:
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(RedactingFormatter(redactor))
    handlers: list[logging.Handler] = [console, SpoolLogHandler(reporter)]
    logging.getLogger("trainer").setLevel(logging.INFO)
    for name in _NOTICES_OF_NO_USE:
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in handlers:
        logging.getLogger().addHandler(handler)
    return handlers
