"""A parser of options that knows Beam's options, and that treats hyphens and underscores in names alike."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

from batchverify.errors import PreflightError

_FILE_URI = re.compile("file://(localhost(?=/))?", re.IGNORECASE)

# The runners whose job services have options that Beam does not know.
_PORTABLE_RUNNER = re.compile(r"(--runner=)?(Portable|Flink|Spark)Runner", re.IGNORECASE)

# No option of ours begins like that.
_DASHED_VALUE = re.compile(r"-[\d.]")


def path_option(text: str) -> str:
    """Returns the path or URI that an option names: `file:` URIs become paths (RFC 8089), and ~ becomes the home folder."""
    if match := _FILE_URI.match(text):
        return unquote(text[match.end() :])
    return os.path.expanduser(text)  # A shell expands ~ only at the beginning of a word, and not in `--output=~/scores`.


def separator_option(text: str) -> str:
    """Returns the character that an option names; no shell makes it easy to type a tab."""
    return "\t" if text in ("tab", r"\t") else text


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `PreflightError` at a mistake.

    Option names may be written with hyphens or underscores, as Beam's options have underscores and ours hyphens.
    """

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise PreflightError(f"{message}; see {self.prog} --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the options.

        Raises:
            PreflightError: if an option is unknown, or a value is wrong.
        """
        self._refuse_unknown(argv, [])
        options: argparse.Namespace
        options, rest = self.parse_known_args(argv)
        self._refuse_words(rest)
        return options

    def parse_with_beam(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns the options, and Beam's arguments, `--name=value`, as Beam spells them.

        A portable runner has options that its job service alone knows; the run asks it.

        Raises:
            PreflightError: if an option is neither ours nor Beam's nor may be the runner's, a word is neither an option nor the
                value of one, or a value is wrong.
        """
        beams = _beam_options() if self._unknown(argv) else {}
        is_portable = any(map(_PORTABLE_RUNNER.fullmatch, argv))
        self._refuse_unknown([word for word in argv if not is_portable or self._is_like_ours(word)], beams)
        options, rest = self.parse_known_args(self._join_others_values(argv, beams))
        self._refuse_words([word for word in rest if not word.startswith("--") or word == "--"])
        return options, _respell(rest, beams)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Does what argparse does, with names in any spelling. Subparsers are called through this method, too."""
        return super().parse_known_args(self._join_dashed_values(_respell(args, self._option_string_actions)), namespace)

    def option_names(self) -> list[str]:
        """Returns the long options of this parser and of its subparsers."""
        names = [name for name in self._option_string_actions if name.startswith("--")]
        nested = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return names + [name for choices in nested for parser in choices.values() for name in parser.option_names()]

    def own_arguments(self, argv: Sequence[str], but: Sequence[str] = ()) -> list[str]:
        """Returns the options in `argv` that this parser has, with their values, except those that `but` names."""
        own, is_own = [], False
        for argument in self._join_dashed_values(_respell(argv, self._option_string_actions)):
            name = argument.partition("=")[0]
            if name.startswith("-"):
                is_own = name in self._option_string_actions and name not in but
            if is_own:
                own.append(argument)
        return own

    def _join_dashed_values(self, arguments: Sequence[str]) -> list[str]:
        """Returns `--pixels -1..1` as one argument; argparse would take -1..1 for an option."""
        joined: list[str] = []
        for argument in arguments:
            action = self._option_string_actions.get(joined[-1]) if joined else None
            if action is not None and action.nargs != 0 and _DASHED_VALUE.match(argument):
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return joined

    def _join_others_values(self, arguments: Sequence[str], beams: Mapping[str, bool]) -> list[str]:
        """Returns `--region europe-west4` as one argument where the option is not ours.

        argparse does not know whether such an option has a value, and would take it for a word of its own.

        Args:
            arguments: The arguments.
            beams: Whether each of Beam's options has a value. An option that neither we nor Beam know may have one.
        """
        without_value = {"--", *map(_hyphenate, self.option_names())}
        without_value |= {_hyphenate(name) for name, has_value in beams.items() if not has_value}
        joined: list[str] = []
        for argument in arguments:
            option = joined[-1] if joined else ""
            may_have_value = option.startswith("--") and "=" not in option and _hyphenate(option) not in without_value
            if may_have_value and (not argument.startswith("-") or _DASHED_VALUE.match(argument)):
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return joined

    def _unknown(self, argv: Sequence[str], others: Iterable[str] = ()) -> list[str]:
        """Returns the names in `argv` that are neither options of this parser nor among `others`."""
        known = {_hyphenate(name) for name in (*self.option_names(), *others)}
        names = [argument.split("=")[0] for argument in argv if argument.startswith("--") and argument != "--"]
        return [name for name in names if _hyphenate(name) not in known]

    def _refuse_unknown(self, argv: Sequence[str], beams: Iterable[str]) -> None:
        # This comes before argparse looks at the arguments. It would speak of a missing --output before a misspelt --outptu.
        if unknown := self._unknown(argv, beams):
            raise PreflightError([self._unknown_option(name, beams) for name in unknown])

    def _is_like_ours(self, argument: str) -> bool:
        """Returns whether an argument is one of our options, or may be one that is misspelt."""
        return bool(difflib.get_close_matches(_hyphenate(argument.partition("=")[0]), self.option_names(), 1, 0.75))

    def _unknown_option(self, name: str, beams: Iterable[str]) -> str:
        ours = self.option_names()
        near = difflib.get_close_matches(name, [*ours, *beams], 1, 0.75) or difflib.get_close_matches(name, ours, 1, 0.6)
        return f"there is no option {name}; " + (f"did you mean {near[0]}?" if near else f"see {self.prog} --help.")

    def _refuse_words(self, words: Sequence[str]) -> None:
        """Refuses words that are neither options nor their values; a shell makes several of a glob that is not quoted."""
        if len(words) == 1:
            self.error(f"'{words[0]}' is not an option; options begin with --")
        if words:
            self.error(f"'{words[0]}' and {len(words) - 1:,} more are not options, which begin with --; put a glob into quotes")


def _respell(arguments: Iterable[str], names: Iterable[str]) -> list[str]:
    """Returns the arguments with each option in the spelling of `names`."""
    spellings = {_hyphenate(name): name for name in names}
    respelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        respelled.append(spellings.get(_hyphenate(name), name) + equals + value if name.startswith("--") else argument)
    return respelled


def _hyphenate(name: str) -> str:
    return name.replace("_", "-")


def _beam_options() -> dict[str, bool]:
    from batchverify.io.storage_options import beam_options

    return beam_options()
