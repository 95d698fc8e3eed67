"""Options of the training method."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nft_ext._common.checks import fail
from nft_ext.cli import options

DEFAULT_BETA = 1e-3  # used if the paper gives none for the network and the data set


def add_method(parser: argparse.ArgumentParser) -> None:
    from nft_ext import methods

    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=methods.NAMES, default="noise", help="training method (default noise)")
    group.add_argument("--base", choices=methods.NAMES, help="method that correctnet regularizes (default vanilla)")
    group.add_argument(
        "--sigma",
        type=float,
        help="sigma during training, in the unit of --relative-to (default 0.1; 1 with --table)",
    )
    group.add_argument(
        "--beta",
        type=_beta,
        metavar="BETA",
        help='ovf and irs: weight of the feedback. A number, "paper", or "search" for the best of 1e-1, 1e-2, '
        "1e-3, 1e-4 on the validation images (default: the paper's value if it has one, else 1e-3)",
    )
    group.add_argument(
        "--feedbacks", type=int, metavar="N", help="number of feedbacks (default: ovf 3, irs one per snapshot point)"
    )
    group.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        dest="method_options",
        help="any other option of the method, as JSON; repeatable. Example: -o delta=-0.05 -o reversed_decay=true. "
        "docs/reference/methods.md lists the options.",
    )


def method_of(arguments: argparse.Namespace) -> Any:
    """The method that the options describe. With `--beta search` its beta is a placeholder.

    Raises:
        ValueError: the method does not take one of the options, or an option is given twice.
    """
    from nft_ext import methods

    own = dict(arguments.method_options)
    taken = {*methods.options_of(arguments.method), *(methods.options_of(arguments.base) if arguments.base else ())}
    for name in ("sigma", "beta", "feedbacks"):
        if getattr(arguments, name) is None:
            continue
        if name not in taken:
            rule = f"must be left out with --method {arguments.method}, which does not take it"
            fail(f"--{name}", rule, getattr(arguments, name))
        if name in own:
            fail(f"--{name}", f"must not be given together with -o {name}", own[name])
    if len(own) < len(arguments.method_options):
        fail("-o", "must name each option once", " ".join(name for name, _ in arguments.method_options))
    if arguments.base is None:
        return methods.build(arguments.method, **_given(arguments, arguments.method) | own)
    if "base" not in methods.options_of(arguments.method):
        fail("--base", "needs --method correctnet", f"{arguments.base} with {arguments.method}")
    inner = {name: own.pop(name) for name in list(own) if name not in methods.options_of(arguments.method)}
    base = methods.build(arguments.base, **_given(arguments, arguments.base) | inner)
    return methods.build(arguments.method, base=base, **own)


def sigma_of(arguments: argparse.Namespace) -> float:
    """The sigma during training."""
    return arguments.sigma if arguments.sigma is not None else options.sigma_left_open(arguments)


def _given(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The values of --sigma, --feedbacks and --beta that the method called `name` takes."""
    from nft_ext import methods

    taken = methods.options_of(name)
    given = {"sigma": sigma_of(arguments), "feedbacks": arguments.feedbacks}
    if "beta" in taken:
        given["beta"] = _beta_of(arguments, name)
    return {option: value for option, value in given.items() if option in taken and value is not None}


def _beta_of(arguments: argparse.Namespace, name: str) -> float:
    from nft_ext import methods

    panel = f"{arguments.model}-{arguments.dataset}"
    if arguments.beta == "paper":
        return methods.paper_beta(name, panel)
    if arguments.beta in (None, "search"):
        return methods.BETAS.get(name, {}).get(panel, DEFAULT_BETA)
    return arguments.beta


def _beta(text: str) -> float | str:
    if text in ("paper", "search"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be a number, "paper" or "search"; got {text}') from None


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE; got {text}")
    if value in ("True", "False", "None"):
        raise argparse.ArgumentTypeError(f"must be JSON: true, false or null; got {text}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a bare word is a string
