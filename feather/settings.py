"""How an option is declared: one field of a dataclass that carries its default, its help text and its bounds.

The common options (``feather.options``) and the options of each policy are declared this way, so that one check and one
list serve all of them.
"""

from collections.abc import Sequence
from dataclasses import Field, field
from typing import Any


def setting(
    default: Any, help: str, low: float | None = None, high: float | None = None, choices: Sequence[str] = (), unit: str = ""
) -> Any:
    """A dataclass field for one option.

    Args:
        default: used when the user does not set the option; its type is the declared type of the field.
        help: one or two sentences for the user.
        low, high: bounds of a number, both allowed values; None: unbounded.
        choices: the allowed values of a string; empty: any.
        unit: of a number, e.g. "tokens" or "seconds".
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices, "unit": unit})


def shown(value: Any) -> str:
    """A value as an error names it: not a page of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints; JSON nested too deep
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 200 else f"{text[:197]}…"


def check_setting(name: str, value: Any, declared: Field) -> None:
    """Raises ValueError, with the option's name and the value, if the value has the wrong type or is out of bounds.

    An int is accepted where a float is declared; a bool is never accepted as a number.
    """
    kind, choices, low, high = declared.type, *(declared.metadata[key] for key in ("choices", "low", "high"))
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"option {name}={shown(value)} must be of type {getattr(kind, '__name__', kind)}")
    if choices and value not in choices:
        raise ValueError(f"option {name}={shown(value)} must be one of: {', '.join(choices)}")
    # Negated, so that NaN is refused too.
    if not ((low is None or value >= low) and (high is None or value <= high)):
        raise ValueError(f"option {name}={shown(value)} must be {f'at least {low}' if high is None else f'from {low} to {high}'}")
