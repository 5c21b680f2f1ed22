"""Number of tokens of a run's examples for which its base has positions."""

from peftly.errors import ConfigError
from peftly.models import Base, max_tokens
from peftly.runs.config import RunConfig

__all__ = ["max_length_of"]

_MIN_LENGTH = 8
"""Minimum number of tokens of an example beside virtual tokens."""


def max_length_of(base: Base, config: RunConfig) -> int:
    """Return the number of tokens for which the base has positions beside the virtual tokens of the methods.

    Raises:
        ConfigError: the virtual tokens leave no room for text.
    """
    virtual_tokens = 0
    for method in config.adapters.values():
        count = getattr(method, "num_virtual_tokens", 0)
        text = getattr(method, "init_text", None)
        # A method whose number is that of its text inserts as many virtual tokens as the text has tokens.
        virtual_tokens += count if isinstance(count, int) else len(base.tokenizer(text)["input_ids"])
    limit = max_tokens(base.model, virtual_tokens)
    if limit is None:
        return config.data.max_length
    if limit < _MIN_LENGTH:
        raise ConfigError(
            f"the base has {limit + virtual_tokens} positions, and method.num_virtual_tokens takes {virtual_tokens} of "
            "them, which leaves no room for text; use fewer virtual tokens"
        )
    return limit
