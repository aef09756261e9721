"""Runs the real stack with small children: `python -m tests.integration.embedded.driver`, with the options of `up`."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from deploy.embedded.children import CHILDREN
from deploy.embedded.console import run_stack
from deploy.embedded.options import options_from

PROGRAM = str(Path(__file__).with_name("child_program.py"))


async def make_roles(superuser_dsn: str, database: str, passwords: Mapping[str, str]) -> None:
    """What the product's own migration does first."""
    connection = await asyncpg.connect(superuser_dsn)
    try:
        for role, password in passwords.items():
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                await connection.execute(f"CREATE ROLE {role} LOGIN")
            await connection.execute(f"ALTER ROLE {role} PASSWORD '{password}'")
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            await connection.execute(f"CREATE DATABASE {database}")
    finally:
        await connection.close()


def main(arguments: list[str]) -> int:
    broken = arguments.pop(arguments.index("--break") + 1) if "--break" in arguments else ""
    options = options_from([argument for argument in arguments if argument != "--break"])

    def kind(name: str) -> str:
        return "broken" if name == broken else "gateway" if name == "gateway" else "service"

    children = [dataclasses.replace(child, arguments=(PROGRAM, kind(child.name))) for child in CHILDREN]
    return run_stack(options, children=children, prepare=make_roles)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
