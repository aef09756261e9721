"""try: a finished LoRA at work on this machine, in pictures or in words."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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

PICTURES, WORDS = "Pictures:", "Words:"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What only pictures have; None is as the job's validation had it."""

    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help=f"{PICTURES} the PNG to write.")] = None
    steps: Annotated[int | None, Parameter(help=f"{PICTURES} denoising steps.")] = None
    guidance: Annotated[float | None, Parameter(help=f"{PICTURES} how closely to follow the prompt.")] = None
    width: Annotated[int | None, Parameter(help=f"{PICTURES} in pixels.")] = None
    height: Annotated[int | None, Parameter(help=f"{PICTURES} in pixels.")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Words:
    """What only language models have."""

    max_tokens: Annotated[int | None, Parameter(help=f"{WORDS} at most this many tokens (256).")] = None
    temperature: Annotated[float | None, Parameter(help=f"{WORDS} 0, the default, takes the likeliest token.")] = None
    system: Annotated[str | None, Parameter(help=f"{WORDS} a system message.")] = None
    raw: Annotated[bool, Parameter(help=f"{WORDS} no chat template; go on where the prompt ends.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sides:
    """Which weights are used, and how strongly."""

    weight: Annotated[float, Parameter(help="How strongly the LoRA acts: 0 not at all, 1 as trained.")] = 1.0
    without: Annotated[bool, Parameter(help="Leave the LoRA out.")] = False
    compare: Annotated[bool, Parameter(help="Both: the base, and the base with the LoRA.")] = False
    ema: Annotated[bool, Parameter(help="The moving average of the weights instead of the last ones.")] = False

    @property
    def word(self) -> str:
        """As `trainer` calls it."""
        return "both" if self.compare else "without" if self.without else "with"


def try_(  # noqa: PLR0913 - the options of a command line
    job: str,
    prompt: str,
    *,
    seed: int | None = None,
    count: int = 1,
    sides: Sides | None = None,
    pictures: Pictures | None = None,
    words: Words | None = None,
    base: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    session: Session,
) -> int:
    """Use a finished LoRA here: draw a picture with it, or let a language model answer.

    What is not said is as the job's own validation pictures had it. What was fetched before is not fetched again.

    :param job: id of the job, or the beginning of it.
    :param prompt: what to draw, or what to say to the model.
    :param seed: chance; the same seed gives the same result.
    :param count: how many, of the seeds that follow; files are numbered by them.
    :param base: the base model's folder or hub id, when it is elsewhere than where the job had it.
    :param device: where to compute.
    """
    sides, pictures, words = sides or Sides(), pictures or Pictures(), words or Words()
    if sides.without and sides.compare:
        raise CliError("give --without or --compare, not both", exit_code=USAGE)
    python = trainer_environment_python(session)
    model = finished(session, job, average=sides.ema)
    shared = {"prompt": prompt, "seed": seed, "count": count, "base": base, "device": device}
    wanted = _given({**shared, "weight": sides.weight, "sides": sides.word})
    if model.kind == "picture":
        _refuse(words, "draws pictures")
        return _draw(session, python, model, wanted, pictures)
    _refuse(pictures, "answers in words")
    return _ask(session, python, model, wanted, words)


def register(app: App) -> None:
    """Adds this command."""
    app.command(try_, name="try")


def _draw(session: Session, python: str, model: Finished, wanted: dict[str, object], options: Pictures) -> int:
    settings = {**asdict(options), "output": None}
    target = options.output or Path(f"{model.job_id[:SHORT_ID]}.png")
    files: dict[str, object] = {"lora": model.lora, "output": target.absolute(), "fact": f"job_id={model.job_id}"}
    everything = {**_validation(model), **wanted, **_given(settings), **files}
    pictures = _followed(session, python, ["render", *_options(everything)], "picture")
    if session.terminal.as_json:
        session.terminal.json({"job_id": model.job_id, "lora": str(model.lora), "pictures": pictures})
        return DONE
    for picture in pictures:
        session.terminal.line(str(picture["path"]))
    return DONE


def _ask(session: Session, python: str, model: Finished, wanted: dict[str, object], options: Words) -> int:
    settings: dict[str, object | None] = {
        "max-new-tokens": options.max_tokens,
        "temperature": options.temperature,
        "system": options.system,
        "raw": options.raw or None,
    }
    everything = {**_trained_on(model), **wanted, **_given(settings), "adapter": model.lora.parent}
    answers = _followed(session, python, ["generate", *_options(everything)], "text")
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


def _refuse(options: Pictures | Words, why: str) -> None:
    """Options of the other kind are mistakes, not wishes to pass over."""
    said = {name: value for name, value in asdict(options).items() if value is not None and value is not False}
    given = [f"--{name.replace('_', '-')}" for name in said]
    if given:
        raise CliError(f"{', '.join(given)} means nothing here: this job's model {why}", exit_code=USAGE)


def _given(values: Mapping[str, object | None]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _options(values: Mapping[str, object]) -> list[str]:
    """`--name=value`, so that a value may begin with a dash; True is a flag."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]
