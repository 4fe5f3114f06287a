"""`prospect completion`: a shell's completion of commands, flags and choices, made from the dataclasses of options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from prospect.cli import help
from prospect.cli.flags import parse
from prospect.cli.help import Flag
from prospect.cli.table import COMMANDS
from prospect.cli.training import CONFIG

EVERYWHERE = (
    Flag("help", "--help", "", (), "Show the command's flags."),
    Flag("quiet", "--quiet", "", (), "No progress and no notes."),
    Flag("debug", "--debug", "", (), "Show the traceback of an error."),
)


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
    own = [flag for flag in help.flags(COMMANDS[command].load_options()) if not flag.positional]
    if command == "train":
        own.append(CONFIG)
    return [flag for flag in own if flag.words != "--loss.NAME"] + list(EVERYWHERE)


def _heads() -> dict[str, list[str]]:
    """First words of commands, each with its second words."""
    heads: dict[str, list[str]] = {}
    for name in COMMANDS:
        head, _, second = name.partition(" ")
        heads.setdefault(head, []).extend([second] if second else [])
    return heads


def _sentence(text: str) -> str:
    """The first sentence of an explanation, without what a shell would read."""
    plain = re.sub(r'[`"\[\]\\$]', "", re.split(r"(?<=[.:;]) ", text)[0])
    return plain.rstrip(".:;").replace("'", "’")


def bash() -> str:
    """For bash: words from a table by command, choices behind a flag, file names everywhere else."""
    words = "\n".join(f'    "{name}") flags="{" ".join(flag.words for flag in _flags(name))}" ;;' for name in COMMANDS)
    choices = "\n".join(
        f'    "{name} {flag.words}") choices="{" ".join(flag.choices)}" ;;'
        for name in COMMANDS
        for flag in _flags(name)
        if flag.choices
    )
    seconds = "\n".join(f'    "{head}") choices="{" ".join(words)}" ;;' for head, words in _heads().items() if words)
    return f"""\
_prospect() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
  local flags="" choices=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(_heads())}" -- "$word"))
    return
  fi
  if [ "$COMP_CWORD" -eq 2 ]; then
    case "$command" in
{seconds}
    "completion") choices="bash zsh fish" ;;
    esac
  else
    case "$command $before" in
{choices}
    esac
  fi
  case "$command" in
{words}
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
    commands = "\n".join(f"    '{head}:{_sentence(_about(head))}'" for head in _heads())
    cases = []
    for name in COMMANDS:
        specs = [f"'{flag.words}[{_sentence(flag.explanation)}]{_zsh_value(flag)}'" for flag in _flags(name)]
        rest = "'*:shell:(bash zsh fish)'" if name == "completion" else "'*:file:_files'"
        cases.append(f"    {name.split()[0]}) _arguments {' '.join([*specs, rest])} ;;")
    return f"""\
_prospect() {{
  local -a commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words; (( CURRENT-- ))
  case $command in
{chr(10).join(cases)}
  esac
}}
compdef _prospect prospect
"""


def _zsh_value(flag: Flag) -> str:
    if flag.choices:
        return f":value:({' '.join(flag.choices)})"
    return f":{flag.field.replace('_', ' ')}:_files" if flag.takes else ""


def _about(head: str) -> str:
    return next(command.help for name, command in COMMANDS.items() if name.split()[0] == head)


def fish() -> str:
    """For fish: one line per command and flag, with explanations."""
    lines = ["complete -c prospect -f -n __fish_use_subcommand"]
    for head, seconds in _heads().items():
        lines.append(f"complete -c prospect -n __fish_use_subcommand -a {head} -d '{_sentence(_about(head))}'")
        seen = f"__fish_seen_subcommand_from {head}"
        lines += [
            f"complete -c prospect -f -n '{seen}; and not __fish_seen_subcommand_from {second}' -a {second}"
            for second in seconds
        ]
    lines.append("complete -c prospect -f -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'")
    for name in COMMANDS:
        seen = f"__fish_seen_subcommand_from {name.split()[-1]}"
        for flag in _flags(name):
            values = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else " -r" if flag.takes else ""
            about = _sentence(flag.explanation)
            lines.append(f"complete -c prospect -n '{seen}' -l {flag.words.removeprefix('--')}{values} -d '{about}'")
    return "\n".join(lines) + "\n"
