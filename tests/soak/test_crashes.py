"""What is left after a kill or a power cut at each moment of each command that writes.

`make test` runs a few moments of some commands; `make soak` all of them, and writes the counts into
benchmarks/results/crashes.json.
"""

import os
import shutil
from functools import partial

import pytest
from crash_cases import NAMES, SLOW
from crash_checks import check, check_end, recorded
from crash_disk import forked, kill_before
from crash_totals import STEP, Family


def checked(world, name, folder, models, step=1, limit=None):
    """Yield every `step`-th of the different states of a case, or `limit` of them, with a function that checks each."""
    case = world.case(name)
    states, expected = recorded(case, folder / "once")
    check_end(expected, states, folder / "end")
    found = list(states.states(*models).values())
    for index, (moment, tree) in enumerate(found[:: max(1, len(found) // limit) if limit else step]):

        def outcome(tree=tree, copies=folder / str(index)):
            result = forked(check, case, expected, partial(states.write, tree), copies)
            shutil.rmtree(copies)
            return result

        yield moment, outcome


@pytest.mark.parametrize(("name", "limit"), [("overwrite a finished run", 3), ("train with checkpoints", 2)])
def test_some_moments_of_a_run(world, folder, name, limit):
    for moment, outcome in checked(world, name, folder, ("kill", "names"), limit=limit):
        assert outcome(), moment


@pytest.mark.parametrize("name", ["save adapters together", "overwrite with merge", "overwrite with export --to peft"])
def test_some_moments_of_a_command(world, folder, name):
    for moment, outcome in checked(world, name, folder, ("kill", "contents", "names"), limit=4):
        assert outcome(), moment


def test_a_killed_process_leaves_what_was_recorded(world, folder):
    """The states above are noted by one process that goes on; here one is really killed at such a moment."""
    case = world.case("overwrite a finished run")
    states, expected = recorded(case, folder / "once")
    moments = [name for name, _ in states.moments]
    number = next(number for number, name in enumerate(moments) if number > 40 and "commit" in name)
    killed, tree = folder / "killed", states.moments[number][1]["kill"]
    states.write(states.moments[0][1]["kill"], killed)

    def command():
        os.chdir(killed)
        case.command()

    kill_before(command, killed, number)
    assert {path.relative_to(killed).parts[0] for path in killed.rglob("*")} == {"out"}
    random_names = {name: "random" for name in tree if ".peftly-new" in name}
    found = {path.relative_to(killed).as_posix() for path in killed.rglob("*")}
    assert {name for name in found if ".peftly-new" not in name} == tree.keys() - random_names.keys()
    assert forked(check, case, expected, partial(shutil.copytree, killed, dirs_exist_ok=True), folder / "next")


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["kill", "power cut"])
def test_every_moment_of_every_command(world, folder, family, name):
    counts = Family(family, name)
    models = ("kill",) if family == "kill" else ("contents", "names")
    step = STEP * (3 if family == "power cut" and name in SLOW else 1)
    for moment, outcome in checked(world, name, folder, models, step):
        counts.attempt(moment, outcome)
    counts.finish()
