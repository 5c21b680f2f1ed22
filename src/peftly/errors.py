"""The errors peftly raises for what a person can mend; anything else is a bug and keeps its own type.

    PeftlyError
    ├── ConfigError      a key or value of a run's configuration
    ├── DataError        a data file, a row, or what a row turns into
    ├── BaseModelError   a base that cannot be found, fetched, verified or opened
    ├── MethodError      a method that does not fit the model it was asked for
    ├── AdapterError     an adapter on disk that is missing, damaged or of another kind
    ├── MergeError       a merged model that does not say what the adapted one says
    └── TrainingError    a run that cannot go on

The command line prints such an error as one line and exits with 2. Every message says what was wrong, what came,
and what to do.
"""

__all__ = [
    "AdapterError",
    "BaseModelError",
    "ConfigError",
    "DataError",
    "MergeError",
    "MethodError",
    "PeftlyError",
    "TrainingError",
]


class PeftlyError(Exception):
    """What was asked for cannot be done, for a reason that the message states."""


class ConfigError(PeftlyError, ValueError):
    """A run's configuration has an unknown key or an impossible value."""


class DataError(PeftlyError, ValueError):
    """A data file cannot be read, or its rows cannot be trained on."""


class BaseModelError(PeftlyError, RuntimeError):
    """A base model cannot be found, fetched, verified or opened."""


class MethodError(PeftlyError, ValueError):
    """A method does not fit this model, or its settings match nothing in it."""


class AdapterError(PeftlyError, ValueError):
    """An adapter folder is missing, damaged, or of a kind that cannot be used here."""


class MergeError(PeftlyError, RuntimeError):
    """A merged model differs from the adapted one by more than rounding explains."""


class TrainingError(PeftlyError, RuntimeError):
    """Training cannot go on."""
