"""serve: a finished language model's LoRA in a vLLM or an Ollama that runs already."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli.commands.jobs import SHORT_ID
from services.cli.exit_codes import DONE, USAGE
from services.cli.failures import CliError
from services.cli.finished import Finished, finished
from services.cli.options import Session
from services.cli.trainer_program import said_by

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def serve(  # noqa: PLR0913 - the options of a command line
    job: str,
    *,
    vllm: list[str] | None = None,
    ollama: str | None = None,
    name: str | None = None,
    base: Annotated[str | None, Parameter(name="--from")] = None,
    gguf: Path | None = None,
    adapter_dir: Path | None = None,
    path_on_server: str | None = None,
    max_lora_rank: int | None = None,
    any_base: bool = False,
    ema: bool = False,
    key_file: Path | None = None,
    watch: bool = False,
    remove: bool = False,
    session: Session,
) -> int:
    """Register a finished language model's LoRA with a running vLLM or Ollama. Repeating it is harmless.

    vLLM forgets adapters when it is restarted: run this again, or leave it running with --watch. A server that wants
    a key gets it from SERVE_API_KEY or --key-file.

    :param job: id of the job, or the beginning of it.
    :param vllm: address of a vLLM; may be repeated, once for each replica.
    :param ollama: address of an Ollama.
    :param name: what to ask the server for; by default the job's name, or the beginning of its id.
    :param base: Ollama: the base model as it is called there.
    :param gguf: Ollama: the adapter converted to GGUF, for architectures whose safetensors Ollama does not take.
    :param adapter_dir: where servers of this machine read adapters from; by default in the data directory.
    :param path_on_server: vLLM elsewhere: what it calls --adapter-dir on its machine.
    :param max_lora_rank: vLLM: the limit that it was started with, to be told before rather than after.
    :param any_base: vLLM: it serves the right base under another name.
    :param ema: the moving average of the weights instead of the last ones.
    :param key_file: a file with the server's API key.
    :param watch: vLLM: stay until Ctrl-C, and load the adapter again whenever it is gone.
    :param remove: take the model away from the server, and the copy of the adapter from --adapter-dir.
    """
    if (vllm is None) == (ollama is None):
        raise CliError("name a server", advice="--vllm URL or --ollama URL", exit_code=USAGE)
    model = None if remove and name else finished(session, job, average=ema)
    if model is not None and model.kind != "text":
        raise CliError(
            f"job {model.job_id} trained a model of pictures; vLLM and Ollama serve language models",
            advice='`tunewright try JOB "a prompt"` draws with it.',
        )
    at_ollama: dict[str, object | None] = {"ollama": ollama, "from": base, "gguf": gguf.absolute() if gguf else None}
    at_vllm: dict[str, object | None] = {"path-on-server": path_on_server, "max-lora-rank": max_lora_rank}
    options: dict[str, object | None] = {
        "name": name or _name_of(model),
        "adapter": model.lora.parent if model else None,
        "adapter-dir": (adapter_dir or session.data_dir / "served").absolute(),
        "key-file": key_file.absolute() if key_file else None,
        **(at_ollama if ollama else at_vllm),
    }
    flags = {"any-base": any_base, "watch": watch, "remove": remove}
    arguments = [f"--{option}={value}" for option, value in options.items() if value is not None]
    arguments += [f"--{flag}" for flag, given in flags.items() if given] + [f"--vllm={url}" for url in vllm or []]
    return _follow(session, ["serve", *arguments])


def register(app: App) -> None:
    """Adds this command."""
    app.command(serve)


def _follow(session: Session, arguments: list[str]) -> int:
    """Prints what became of each server; in JSON one document, or with --watch one for each change."""
    lines: list[dict[str, Any]] = []
    # This Python, not the trainer's: registering needs no torch.
    for line in said_by(session, sys.executable, arguments):
        match line.pop("type"):
            case "served":
                lines.append(line)
                session.terminal.say(f"{line['url']}: {line.get('state', 'created')}; ask it for {line['model']}")
            case "removed":
                lines.append(line)
                session.terminal.say(f"{line['url']}: {'removed' if line['was_there'] else 'was not there'}")
            case "stage":
                session.terminal.say(str(line["text"]))
                continue
            case _:
                continue
        if "--watch" in arguments and session.terminal.as_json:
            session.terminal.json(line)
    if session.terminal.as_json:
        session.terminal.json({"servers": lines})
    else:
        for line in lines:
            session.terminal.line(str(line["model"]))
    return DONE


def _name_of(model: Finished | None) -> str:
    """The job's own name as servers take names, or the beginning of its id."""
    if model is None:
        raise CliError("name what to remove with --name", exit_code=USAGE)
    readable = _NOT_IN_NAMES.sub("-", model.name).strip("-._")
    return readable[:64] or f"job-{model.job_id[:SHORT_ID]}"
