"""The learning rate finder on the settings of a run. No run folder is read or written."""

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from peftly.errors import ConfigError
from peftly.models import Base
from peftly.runs.config import AnyConfig, JobsConfig, RunConfig
from peftly.runs.launch import check_processes
from peftly.runs.probing import choose_head, start_from
from peftly.runs.run import attach_method, batches_line, open_base_and_data
from peftly.training import LearningRateTest, check_trainable, find_learning_rate

if TYPE_CHECKING:
    from peftly.training import Callback

__all__ = ["find_rate_of_run"]


def find_rate_of_run(
    config: AnyConfig,
    *,
    steps: int,
    base: Base | None = None,
    log: Callable[[str], None] = lambda _: None,
    callbacks: Sequence["Callback"] = (),
) -> LearningRateTest:
    """Test the learning rates of a run; of an ensemble, those of its first member.

    Args:
        config: settings of the run.
        steps: see `find_learning_rate`.
        base: base named in `config`, if it is already open. It has the adapters afterwards, untrained.
        log: function that receives each line of progress.
        callbacks: callbacks of the steps.

    Raises:
        ConfigError: the settings are those of jobs, or do not fit base or data.
        DataError, BaseModelError, MethodError, TrainingError: as for `run`.
    """
    if isinstance(config, JobsConfig):
        raise ConfigError("find-lr tests one run, and the configuration has jobs; test the settings of each job alone")
    run: RunConfig = next(iter(config.parts().values()), config)
    check_processes(run, resume=False)
    is_given = base is not None

    def log_of_test(line: str) -> None:
        if f"inspect {shlex.quote(run.out)}" not in line:  # advice for the folder of a run
            log(line)

    run, base, data = open_base_and_data(run, base, None, log_of_test)
    base, _head, probe = choose_head(base, run, data, log, is_given=is_given)
    for name, method in run.adapters.items():
        attach_method(base, name, method, run, data, log)
    start_from(base, list(run.adapters), data, probe)
    check_trainable(base.model, data, run.train)
    log(batches_line(base.model, run.train))
    return find_learning_rate(base.model, data, run.train, tokenizer=base.tokenizer, steps=steps, callbacks=callbacks)
