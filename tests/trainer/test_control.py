"""What ends an attempt or makes it save, and how commands are answered; then the same in whole attempts."""

from attempts import AttemptStarter
from receiver import Receiver
from test_resume import slow_steps

from shared.contracts.run import ExitCode, TrainerCommand
from trainer.control import COMMANDS, Control


class Hand:
    """A clock that stands where it was put."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_time_limit_counts_from_the_beginning_and_asks_for_a_checkpoint() -> None:
    clock = Hand()
    control = Control(clock)
    control.limit(60, None)
    clock.now_s += 59
    assert control.ending("at step 3") is None
    clock.now_s += 1
    ending = control.ending("at step 4")
    assert ending is not None
    assert (ending.failure.kind, ending.failure.exit_code, ending.saves) == ("preempted", ExitCode.PREEMPTED, True)
    assert ending.failure.message == "stopped at step 4: the time limit of 60 s is reached"
    assert not control.stop.is_set(), "there is time to deliver: only a stop makes that short"


def test_a_checkpoint_is_due_again_and_again_and_counts_from_the_last_one() -> None:
    clock = Hand()
    control = Control(clock)
    assert not control.checkpoint_is_due()
    control.limit(None, 30)
    clock.now_s += 30
    assert control.checkpoint_is_due()
    control.checkpoint_saved()
    clock.now_s += 29
    assert not control.checkpoint_is_due()
    clock.now_s += 1
    assert control.checkpoint_is_due()


def test_a_command_is_carried_out_once_however_often_it_comes() -> None:
    control = Control()
    command = TrainerCommand(id="c-1", name="checkpoint_now")
    assert control.apply(command)
    assert control.checkpoint_is_due()
    assert control.checkpoint_saved() == [command]
    assert control.apply(command)
    assert not control.checkpoint_is_due()
    assert control.carried_out(*COMMANDS) == []


def test_a_command_that_nobody_knows_is_told_so_once() -> None:
    control = Control()
    command = TrainerCommand(id="c-1", name="make_tea")
    assert not control.apply(command)
    assert control.apply(command)
    assert control.carried_out(*COMMANDS, "make_tea") == []


def test_commands_are_acknowledged_by_a_line_each_once_they_are_carried_out(
    start: AttemptStarter, receiver: Receiver
) -> None:
    names = ["checkpoint_now", "sample_now", "make_tea"]
    asked = [TrainerCommand(id=f"c-{name}", name=name) for name in names]
    receiver.commands = list(asked)
    attempt = start("asked", gateway=receiver, max_train_steps=3000, checkpointing_steps=3000).fork(slow_steps)
    receiver.wait_until(lambda received: len(received.of_type("command")) == 3)
    receiver.commands = [*asked, TrainerCommand(id="c-stop", name="stop")]
    assert attempt.wait() == ExitCode.PREEMPTED
    told = {data["id"]: (data["name"], data["outcome"]) for data in receiver.received.of_type("command")}
    assert told == {
        "c-checkpoint_now": ("checkpoint_now", "done"),
        "c-sample_now": ("sample_now", "done"),
        "c-make_tea": ("make_tea", "unknown"),
        "c-stop": ("stop", "done"),
    }
    assert len(receiver.received.of_type("command")) == 4, "what comes again is not answered again"
    assert len(receiver.received.of_type("checkpoint")) == 2
    assert receiver.received.types[-1] == "failed"


def test_a_time_limit_leaves_a_checkpoint_delivers_it_and_exits_75(start: AttemptStarter, receiver: Receiver) -> None:
    attempt = start("timed", gateway=receiver, max_train_steps=3000, checkpointing_steps=3000)
    control = Control()

    def time_is_up() -> None:
        control.limit(0.0, None)

    receiver.answer_reports = lambda lines: (
        time_is_up() or 200 if any(line.type == "metrics" for line in lines) else 200
    )
    assert attempt.run(control) == ExitCode.PREEMPTED
    kinds = [name for name in receiver.received.types if name in {"checkpoint", "failed"}]
    assert kinds == ["checkpoint", "failed"]
    assert "time limit" in receiver.received.of_type("failed")[0]["message"]


def test_metrics_say_how_fast_it_goes(start: AttemptStarter) -> None:
    attempt = start("fast", max_train_steps=2, gradient_accumulation_steps=2)
    assert attempt.run() == ExitCode.DONE
    for line in attempt.data("metrics"):
        assert line["samples_per_s"] * line["step_s"] > 0
        assert abs(line["samples_per_s"] * line["step_s"] - 8) < 0.5, "two batches of four"
        assert line["memory_bytes"] > 0
        assert not any(name.startswith("gpu_") for name in line), "there is no GPU here, so nothing is said of one"


def test_what_the_gateway_never_took_lies_in_the_outbox_until_it_does(
    start: AttemptStarter, receiver: Receiver
) -> None:
    receiver.answer_reports = lambda lines: 503 if any(line.type in {"metrics", "done"} for line in lines) else 200
    attempt = start("boxed", gateway=receiver, drain_s=0.5, max_train_steps=1)
    assert attempt.run() == ExitCode.DONE
    outbox = attempt.work_dir / "outbox.jsonl"
    unsent = outbox.read_bytes().splitlines()
    assert len(unsent) == len(attempt.lines()) - receiver.received.ack
    assert attempt.lines()[-len(unsent) :][-1].type == "done"
    receiver.answer_reports = lambda _lines: 200
    assert attempt.run() == ExitCode.DONE
    assert not outbox.exists()
