"""`prospect completion` and `prospect version`: a shell's completion of commands, flags and choices, made from the
dataclasses of options; and what a bug report needs."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from prospect import __version__
from prospect.cli.main import COMMANDS
from prospect.cli.options import Flag, flags, parse
from prospect.cli.training import CONFIG

EVERYWHERE = (
    Flag("help", "--help", "", (), "Show the command's flags."),
    Flag("quiet", "--quiet", "", (), "No progress and no notes."),
    Flag("debug", "--debug", "", (), "Show the traceback of an error."),
)
SHELLS = "bash zsh fish"


@dataclass(frozen=True)
class CompletionOptions:
    """Print a shell's completion script. bash: eval "$(prospect completion bash)" in ~/.bashrc; zsh: the same line in
    ~/.zshrc, behind compinit; fish: prospect completion fish > ~/.config/fish/completions/prospect.fish"""

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="bash|zsh|fish")]
    """The shell that reads the script."""


def completion(arguments: list[str]) -> int:
    """`prospect completion SHELL`"""
    options = parse(CompletionOptions, arguments, "completion")
    print({"bash": bash, "zsh": zsh, "fish": fish}[options.shell](), end="")
    return 0


def _flags(command: str) -> list[Flag]:
    """The flags of a command, without its positional arguments."""
    own = [flag for flag in flags(COMMANDS[command].load_options()) if flag.words.startswith("--")]
    own += [CONFIG] if command == "train" else []
    return [flag for flag in own if flag.words != "--loss.NAME"] + list(EVERYWHERE)


def _sentence(text: str) -> str:
    """The first sentence of an explanation, without what a shell would read."""
    plain = re.sub(r'[`"\[\]\\$]', "", re.split(r"(?<=[.:;]) ", text)[0])
    return plain.rstrip(".:;").replace("'", "’")


def bash() -> str:
    """For bash: words from a table by command, choices behind a flag, file names everywhere else."""
    words, choices = [], [f'    "completion completion") choices="{SHELLS}" ;;']
    for name in COMMANDS:
        words.append(f'    "{name}") flags="{" ".join(flag.words for flag in _flags(name))}" ;;')
        for flag in _flags(name):
            if flag.choices:
                choices.append(f'    "{name} {flag.words}") choices="{" ".join(flag.choices)}" ;;')
    line = "\n"
    return f"""\
_prospect() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
  local flags="" choices=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)}" -- "$word"))
    return
  fi
  case "$command $before" in
{line.join(choices)}
  esac
  case "$command" in
{line.join(words)}
  esac
  if [ -n "$choices" ]; then
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
  elif [ "${{word:0:1}}" = "-" ]; then
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
  fi
}}
complete -o default -F _prospect prospect
"""


def zsh() -> str:
    """For zsh: _arguments, with explanations."""
    commands, cases = [], []
    for name, command in COMMANDS.items():
        commands.append(f"    '{name}:{_sentence(command.help)}'")
        specs = []
        for flag in _flags(name):
            value = f":{flag.field.replace('_', ' ')}:_files" if flag.takes else ""
            value = f":value:({' '.join(flag.choices)})" if flag.choices else value
            specs.append(f"'{flag.words}[{_sentence(flag.explanation)}]{value}'")
        specs.append(f"'*:shell:({SHELLS})'" if name == "completion" else "'*:file:_files'")
        cases.append(f"    {name}) _arguments {' '.join(specs)} ;;")
    line = "\n"
    return f"""\
_prospect() {{
  local -a commands=(
{line.join(commands)}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words; (( CURRENT-- ))
  case $command in
{line.join(cases)}
  esac
}}
compdef _prospect prospect
"""


def fish() -> str:
    """For fish: one line per command and flag, with explanations."""
    lines = ["complete -c prospect -f -n __fish_use_subcommand"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c prospect -n __fish_use_subcommand -a {name} -d '{_sentence(command.help)}'")
    lines.append(f"complete -c prospect -f -n '__fish_seen_subcommand_from completion' -a '{SHELLS}'")
    for name in COMMANDS:
        for flag in _flags(name):
            values = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else " -r" if flag.takes else ""
            where = f"complete -c prospect -n '__fish_seen_subcommand_from {name}'"
            lines.append(f"{where} -l {flag.words.removeprefix('--')}{values} -d '{_sentence(flag.explanation)}'")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class VersionOptions:
    """Print the versions that matter for a bug report."""


def version(arguments: list[str]) -> int:
    """`prospect version`"""
    parse(VersionOptions, arguments, "version")
    print(f"prospect {__version__}")
    print(f"python {sys.version.split()[0]}")
    for name in ("torch", "transformers", "peft", "datasets", "numpy"):
        try:
            print(f"{name} {installed_version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    return 0
