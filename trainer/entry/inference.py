"""The commands for what comes after training: `render`, `generate` and `serve`. Their lines are in `entry.lines`."""

import argparse
import os
from pathlib import Path
from typing import Any

from trainer.entry import serve
from trainer.entry.lines import to_an_end
from trainer.failures import AttemptFailed
from trainer.families.registry import family_entries


def add_commands(commands: Any) -> None:
    """Adds the subcommands; each sets `start`, a function from the parsed options to an exit code."""
    render = commands.add_parser("render", help="draw with a base model and a finished LoRA")
    _add_sides(render)
    render.add_argument("--lora", type=Path, help="the LoRA's safetensors file")
    render.add_argument("--family", help="the family that it was trained as")
    render.add_argument("-o", "--output", type=Path, required=True, help="a PNG; numbered when there are several")
    render.add_argument("--steps", type=int)
    render.add_argument("--guidance", type=float)
    render.add_argument("--width", type=int)
    render.add_argument("--height", type=int)
    render.add_argument("--text-length", type=int, help="tokens of text that the model was trained with")
    render.add_argument("--variant", help="of the base's files, such as fp16")
    render.add_argument("--fact", action="append", default=[], metavar="NAME=VALUE", help="goes into the PNG")
    render.set_defaults(start=_render)

    generate = commands.add_parser("generate", help="ask a language model with a finished LoRA")
    _add_sides(generate)
    generate.add_argument("--adapter", type=Path, help="the folder of the finished LoRA")
    generate.add_argument("--system", help="a system message")
    generate.add_argument("--raw", action="store_true", help="no chat template: go on where the prompt ends")
    generate.add_argument("--max-new-tokens", type=int, default=256)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.set_defaults(start=_generate)

    serving = commands.add_parser("serve", help="put a finished language model's LoRA into a running vLLM or Ollama")
    serve.add_options(serving)
    serving.set_defaults(start=_serve)


def _add_sides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, help="a folder, or a hub id")
    parser.add_argument("--revision", help="of the base on the hub")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--weight", type=float, default=1.0, help="how strongly the LoRA acts")
    parser.add_argument("--sides", choices=["with", "without", "both"], default="with", help="of the LoRA")
    parser.add_argument("--mixed-precision", choices=["bf16", "fp16", "no"], default="bf16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


_SHARED = ("base", "revision", "prompt", "seed", "count", "weight", "mixed_precision", "device")


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    sides = {"with_lora": options.sides != "without", "without_lora": options.sides != "with"}
    return {**{name: getattr(options, name) for name in _SHARED}, **sides}


def _render(options: argparse.Namespace) -> int:
    def work() -> None:
        if options.family is not None and options.family not in family_entries():
            advice = f"This build draws {', '.join(family_entries())}."
            raise AttemptFailed("bad_config", f"the model family {options.family} is not known", advice)
        # Imported here, as torch is in `generate`: it takes seconds, and a wrong option must not wait for it.
        from trainer.entry.render import Wish, render  # noqa: PLC0415

        own = ("lora", "output", "steps", "guidance", "width", "height", "text_length", "variant")
        facts = dict(fact.split("=", 1) for fact in options.fact)
        render(Wish(**_shared(options), **{name: getattr(options, name) for name in own}, facts=facts))

    return to_an_end(work)


def _generate(options: argparse.Namespace) -> int:
    def work() -> None:
        from trainer.entry.generate import Question, generate  # noqa: PLC0415

        own = ("adapter", "system", "raw", "max_new_tokens", "temperature")
        generate(Question(**_shared(options), **{name: getattr(options, name) for name in own}))

    return to_an_end(work)


def _serve(options: argparse.Namespace) -> int:
    # Taken out of the environment, so that no crash report carries it.
    key = os.environ.pop("SERVE_API_KEY", "")

    def work() -> None:
        serve.serve(options, _key_from(options.key_file) or key)

    return to_an_end(work)


def _key_from(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        advice = "The file holds the server's key and nothing else."
        raise AttemptFailed("bad_config", f"{path} cannot be read: {error.strerror}", advice) from error
