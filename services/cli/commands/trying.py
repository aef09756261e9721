"""try: a finished LoRA at work on this machine, in pictures or in words."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.commands.jobs import SHORT_ID
from services.cli.exit_codes import DONE, USAGE
from services.cli.failures import CliError, Place
from services.cli.finished import Finished, finished
from services.cli.options import Session
from services.cli.terminal import clean
from services.cli.trainer_program import said_by, trainer_environment_python
from shared.contracts.training.diffusion import check_diffusion
from shared.contracts.training.problems import ConfigRejected
from shared.contracts.training.spec import check_training

Device = Literal["auto", "cpu", "cuda"]


def try_(  # noqa: PLR0913 - the options of a command line
    job: str,
    prompt: str,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    seed: int | None = None,
    count: int = 1,
    weight: float = 1.0,
    without: bool = False,
    compare: bool = False,
    ema: bool = False,
    base: str | None = None,
    device: Device = "auto",
    steps: int | None = None,
    guidance: float | None = None,
    width: int | None = None,
    height: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    system: str | None = None,
    raw: bool = False,
    session: Session,
) -> int:
    """Use a finished LoRA here: draw a picture with it, or let a language model answer.

    What is not said is as the job's own validation pictures had it. What was fetched before is not fetched again.

    :param job: id of the job, or the beginning of it.
    :param prompt: what to draw, or what to say to the model.
    :param output: pictures: the PNG to write; numbered by seed when there are several.
    :param seed: chance; the same seed gives the same result.
    :param count: how many, of the seeds that follow.
    :param weight: how strongly the LoRA acts: 0 not at all, 1 as trained.
    :param without: leave the LoRA out.
    :param compare: both, the base and the base with the LoRA.
    :param ema: the moving average of the weights instead of the last ones.
    :param base: the base model's folder or hub id, when it is elsewhere than where the job had it.
    :param device: where to compute.
    :param steps: pictures: denoising steps.
    :param guidance: pictures: how closely to follow the prompt.
    :param width: pictures: in pixels.
    :param height: pictures: in pixels.
    :param max_tokens: words: at most this many tokens (256).
    :param temperature: words: 0, the default, takes the likeliest token every time.
    :param system: words: a system message.
    :param raw: words: no chat template; the model goes on where the prompt ends.
    """
    if without and compare:
        raise CliError("give --without or --compare, not both", exit_code=USAGE)
    python = trainer_environment_python(session)
    model = finished(session, job, average=ema)
    shared: dict[str, object | None] = {
        "prompt": prompt,
        "seed": seed,
        "count": count,
        "weight": weight,
        "sides": "both" if compare else "without" if without else "with",
        "base": base,
        "device": device,
    }
    of_pictures: dict[str, object | None] = {"steps": steps, "guidance": guidance, "width": width, "height": height}
    of_words: dict[str, object | None] = {
        "max-new-tokens": max_tokens,
        "temperature": temperature,
        "system": system,
        "raw": True if raw else None,
    }
    if model.kind == "picture":
        _refuse(of_words, "draws pictures")
        target = output or Path(f"{model.job_id[:SHORT_ID]}.png")
        return _draw(session, python, model, {**_validation(model), **_given({**shared, **of_pictures})}, target)
    _refuse({**of_pictures, "output": output}, "answers in words")
    return _ask(session, python, model, {**_trained_on(model), **_given({**shared, **of_words})})


def register(app: App) -> None:
    """Adds this command."""
    app.command(try_, name="try")


def _draw(session: Session, python: str, model: Finished, wanted: dict[str, object], target: Path) -> int:
    files: dict[str, object] = {"lora": model.lora, "output": target.absolute(), "fact": f"job_id={model.job_id}"}
    pictures = _followed(session, python, ["render", *_options({**wanted, **files})], "picture")
    if session.terminal.as_json:
        session.terminal.json({"job_id": model.job_id, "lora": str(model.lora), "pictures": pictures})
        return DONE
    for picture in pictures:
        session.terminal.line(str(picture["path"]))
    return DONE


def _ask(session: Session, python: str, model: Finished, wanted: dict[str, object]) -> int:
    options = _options({**wanted, "adapter": model.lora.parent})
    answers = _followed(session, python, ["generate", *options], "text")
    if session.terminal.as_json:
        session.terminal.json({"job_id": model.job_id, "lora": str(model.lora.parent), "answers": answers})
        return DONE
    several = len(answers) > 1
    for answer in answers:
        if several:
            side = "with the LoRA" if answer["with_lora"] else "the base"
            session.terminal.say(f"— {side}, seed {answer['seed']}:")
        session.terminal.line(str(answer["text"]))
    return DONE


def _followed(session: Session, python: str, arguments: list[str], wanted: str) -> list[dict[str, Any]]:
    """The lines of one type that the trainer says, without their type; its stages and progress are shown."""
    found: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    err = session.terminal.err
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        for line in said_by(session, python, arguments):
            match line.pop("type"):
                case "stage":
                    bars.update(task, description=clean(str(line["text"])))
                case "progress":
                    bars.update(task, description="drawing", completed=line["done"], total=line["total"])
                case type_ if type_ == wanted:
                    found.append(line)
                case _:
                    pass
    return found


def _validation(model: Finished) -> dict[str, object]:
    """The settings of the job's own validation pictures, as options of `trainer render`."""
    with _understood():
        spec = check_diffusion(model.config)
    width, _, height = spec.validation_resolution.split(",")[0].strip().partition("x")
    seed = spec.validation_seed if spec.validation_seed is not None else spec.seed
    settings: dict[str, object | None] = {
        "base": spec.pretrained_model_name_or_path,
        "revision": spec.revision,
        "variant": spec.variant,
        "family": spec.model_family,
        "mixed-precision": spec.mixed_precision,
        "text-length": spec.tokenizer_max_length,
        "steps": spec.validation_num_inference_steps,
        "guidance": spec.validation_guidance,
        "width": int(width),
        "height": int(height or width),
        "seed": seed,
    }
    return _given(settings)


def _trained_on(model: Finished) -> dict[str, object]:
    """The base of a language model's job, as options of `trainer generate`."""
    with _understood():
        spec = check_training(model.config, model.dataloader).spec
    settings: dict[str, object | None] = {
        "base": spec.pretrained_model_name_or_path,
        "revision": spec.revision,
        "mixed-precision": spec.mixed_precision,
        "seed": spec.seed,
    }
    return _given(settings)


@contextmanager
def _understood() -> Generator[None]:
    """A config that another version accepted may mean nothing to this one."""
    try:
        yield
    except ConfigRejected as rejected:
        places = [Place(where=each.field, message=each.message, advice=each.advice) for each in rejected.problems]
        raise CliError("this version does not understand the job's config", places=places) from rejected


def _refuse(options: Mapping[str, object | None], why: str) -> None:
    """Options of the other kind are mistakes, not wishes to pass over."""
    given = sorted(f"--{name.replace('max-new', 'max')}" for name, value in options.items() if value is not None)
    if given:
        raise CliError(f"{', '.join(given)} means nothing here: this job's model {why}", exit_code=USAGE)


def _given(values: Mapping[str, object | None]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _options(values: Mapping[str, object]) -> list[str]:
    """`--name=value`, so that a value may begin with a dash; True is a flag."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]
