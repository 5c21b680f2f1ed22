"""Errors with a cause that the user can remedy. All other exceptions are bugs of peftly.

    PeftlyError
    ├── ConfigError      invalid key or value in the configuration of a run
    ├── DataError        unreadable data file, or data that cannot be trained on
    ├── BaseModelError   base that cannot be found, downloaded, verified or opened
    ├── MethodError      method that does not fit the model
    ├── AdapterError     adapter folder that is missing, damaged or of another kind
    ├── MergeError       merged model that computes other outputs than the adapted model
    └── TrainingError    training that cannot continue

The command line prints such an error as one line and exits with code 2. Every message names the problem, the value that
caused it, and a remedy.
"""

__all__ = [
    "AdapterError",
    "BaseModelError",
    "ConfigError",
    "DataError",
    "MergeError",
    "MethodError",
    "PeftlyError",
    "Stopped",
    "TrainingError",
]


class PeftlyError(Exception):
    """Base class of all errors that the user can remedy, as the message states."""


class ConfigError(PeftlyError, ValueError):
    """The configuration of a run, or an argument, has an unknown key or an invalid value."""


class DataError(PeftlyError, ValueError):
    """A data file cannot be read, or its rows cannot be trained on."""


class BaseModelError(PeftlyError, RuntimeError):
    """A base model cannot be found, downloaded, verified or opened."""


class MethodError(PeftlyError, ValueError):
    """A method does not fit the model, or its settings match none of the layers."""


class AdapterError(PeftlyError, ValueError):
    """An adapter folder is missing, damaged, or of a kind that is not usable here."""


class MergeError(PeftlyError, RuntimeError):
    """The outputs of a merged model differ from the outputs of the adapted model by more than rounding explains."""


class TrainingError(PeftlyError, RuntimeError):
    """Training cannot continue, for example after a loss that is not a number."""


class Stopped(KeyboardInterrupt):
    """A signal of a scheduler or of the system (SIGTERM, SIGHUP, SIGUSR1) has stopped the process.

    Attributes:
        exit_code: exit code of the command line, the same for all of these signals.
    """

    exit_code = 143
