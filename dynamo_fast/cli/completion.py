"""`dynamo-fast completion bash|zsh|fish`: a script with which the shell completes commands, options and their values.

It is made from the parsers themselves, so that it has every command and option of this version.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["add_parser", "run", "script"]

_EXAMPLES = """\
examples:
  bash: source <(dynamo-fast completion bash)          in ~/.bashrc
  zsh:  source <(dynamo-fast completion zsh)           in ~/.zshrc, after compinit
  fish: dynamo-fast completion fish | source           in ~/.config/fish/config.fish
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script with which bash, zsh or fish completes this command",
        description="Print a script that completes commands, options and their values.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=sorted(_SHELLS))
    parser.set_defaults(run=run, subparsers=subparsers)


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    print(script(options.shell, options.subparsers), end="")
    return 0


def script(shell: str, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> str:
    """The script for a shell: `bash`, `zsh` or `fish`."""
    return _SHELLS[shell](list(_commands(subparsers)))


@dataclass(frozen=True)
class _Option:
    names: list[str]
    help: str
    takes_value: bool
    values: list[str]


@dataclass(frozen=True)
class _Command:
    name: str
    help: str
    options: list[_Option]
    values: list[str]
    """Of its arguments, where there is a choice."""


def _commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[_Command]:
    helps = {action.dest: action.help or "" for action in subparsers._choices_actions}
    for name, parser in subparsers.choices.items():
        actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        options = [_option(action) for action in actions if action.option_strings]
        values = [str(each) for action in actions if not action.option_strings for each in action.choices or ()]
        yield _Command(name, helps.get(name, ""), options, values)


def _option(action: argparse.Action) -> _Option:
    text = (action.help or "").replace("%%", "%")
    return _Option(list(action.option_strings), text, action.nargs != 0, [str(each) for each in action.choices or ()])


# bash and zsh -----------------------------------------------------------------------------------------------------------

_BASH = """\
_dynamo_fast() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        esac
        if [ -z "$words" ]; then
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _dynamo_fast dynamo-fast
"""


def _bash(commands: list[_Command]) -> str:
    values = [
        f"            {'|'.join(shlex.quote(f'{command.name} {name}') for name in option.names)}) "
        f"words={_words(option.values)} ;;"
        for command in commands
        for option in command.options
        if option.values
    ]
    options = [
        f"                {command.name}) words="
        f"{_words([*command.values, *(name for option in command.options for name in option.names)])} ;;"
        for command in commands
    ]
    names = _words([command.name for command in commands] + ["--help", "--version"])
    return _BASH.format(commands=names, values="\n".join(values), options="\n".join(options))


def _words(words: list[str]) -> str:
    return shlex.quote(" ".join(words))


def _zsh(commands: list[_Command]) -> str:
    return f"autoload -Uz bashcompinit && bashcompinit\n{_bash(commands)}"


# fish -------------------------------------------------------------------------------------------------------------------


def _fish(commands: list[_Command]) -> str:
    return "\n".join(["complete -c dynamo-fast -e", *(line for each in commands for line in _fish_lines(each)), ""])


def _fish_lines(command: _Command) -> Iterator[str]:
    first = "complete -c dynamo-fast -n __fish_use_subcommand -f"
    yield f"{first} -a {_fish_quoted(command.name)} -d {_fish_quoted(command.help)}"
    here = f"complete -c dynamo-fast -n '__fish_seen_subcommand_from {command.name}'"
    if command.values:
        yield f"{here} -f -a {_fish_quoted(' '.join(command.values))}"
    for option in command.options:
        parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
        if option.values:
            parts.append(f"-x -a {_fish_quoted(' '.join(option.values))}")
        elif option.takes_value:
            parts.append("-r")
        yield f"{here} {' '.join(parts)} -d {_fish_quoted(option.help)}"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_SHELLS: dict[str, Callable[[list[_Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
