"""What is left after a kill, a power cut, a failure or a full disk at each moment of each command that writes.

`make test` runs a few moments of some commands; `make soak` all of them, and writes the counts into
benchmarks/results/crashes.json.
"""

import os
import random
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from commands import Outcome
from crash_cases import NAMES, World, check, check_end, content, ends, recorded, said, tidy
from crash_disk import forked, kill_before
from crash_faults import FAILURES, PLACES, can_mount, failed, full_from, needed_pages, on_small_disk
from crash_flips import flipped, flips, opened, opened_model, result_of, resumed
from crash_totals import Family

WITH_SPACE = (
    "train with checkpoints",
    "overwrite a finished run",
    "train an ensemble",
    "save adapters together",
    "overwrite with merge",
    "overwrite with export --to gguf",
    "overwrite with combine",
)
FAILING = ("train with checkpoints", "overwrite a finished run", "resume")
SIZES = 21
FLIPPED = ("adapter", "run", "unfinished run", "merged model")
SAVES = 50


@pytest.fixture(scope="module")
def world(tiny_llama_folder, tmp_path_factory):
    before = Path.cwd()
    world = World(tiny_llama_folder, tmp_path_factory.mktemp("world"))
    yield world
    world.end()
    os.chdir(before)


@pytest.fixture
def folder(tmp_path):
    """A folder in memory, where a sync takes no time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return tmp_path
    folder = memory / f"peftly-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def checked(world, name, folder, models, limit=None):
    """Yield the different states of a case with their names, evenly spaced, and a function that checks each."""
    case = world.case(name)
    states, expected = recorded(case, folder / "once")
    check_end(expected, states, folder / "end")
    found = list(states.states(*models).values())
    for index, (moment, tree) in enumerate(found[:: max(1, len(found) // limit) if limit else 1]):

        def outcome(tree=tree, copies=folder / str(index)):
            result = forked(check, case, expected, partial(states.write, tree), copies)
            shutil.rmtree(copies)
            return result

        yield moment, outcome


@pytest.mark.parametrize(("name", "limit"), [("overwrite a finished run", 4), ("train with checkpoints", 4)])
def test_some_moments_of_a_run(world, folder, name, limit):
    for moment, outcome in checked(world, name, folder, ("kill", "names"), limit):
        assert outcome(), moment


@pytest.mark.parametrize("name", ["save adapters together", "overwrite with merge", "overwrite with export --to peft"])
def test_some_moments_of_a_command(world, folder, name):
    for moment, outcome in checked(world, name, folder, ("kill", "contents", "names"), 5):
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
    for moment, outcome in checked(world, name, folder, models):
        counts.attempt(moment, outcome)
    counts.finish()


def failures(world, folder, draws, names=FAILING):
    """Yield descriptions of failures at random moments, and a function that tries each."""
    draw = random.Random(0)
    cases = {name: (world.case(name), *recorded(world.case(name), folder / f"{name} once")) for name in names}
    for failure in FAILURES:
        for number in range(draws):
            case, states, expected = cases[draw.choice(names)]
            place = PLACES[number % len(PLACES)]
            when = draw.randrange(len(states.moments) if place == "file" else 6 if place == "backward" else 9)
            times = range(when, when + 4, 3) if failure.endswith("twice") else range(when, when + 1)
            root = folder / f"{failure}-{number}"

            def outcome(case=case, states=states, expected=expected, root=root, place=place, times=times, failure=failure):
                states.write(states.moments[0][1]["kill"], root)
                result = failed(case, expected, root, place, times, failure)
                shutil.rmtree(root)
                shutil.rmtree(root.with_name(f"{root.name}-next"), ignore_errors=True)
                return result

            yield f"{failure} in {place} {when} of {case.name}", outcome


def test_some_failures(world, folder):
    for description, outcome in failures(world, folder, 1, FAILING[1:2]):
        assert outcome(), description


@pytest.mark.soak
def test_failures_at_random_moments(world, folder):
    counts = Family("exceptions")
    for description, outcome in failures(world, folder, 27):
        counts.attempt(description, outcome)
    counts.finish()


def full_disks(world, name, folder, step):
    case = world.case(name)
    states, expected = recorded(case, folder / "once")
    for length in (10**6, 4):
        for first in range(0, len(states.moments), step):
            root = folder / f"{length}-{first}"

            def outcome(times=range(first, first + length), root=root):
                states.write(states.moments[0][1]["kill"], root)
                result, was_met = full_from(case, expected, root, times)
                shutil.rmtree(root)
                shutil.rmtree(root.with_name(f"{root.name}-next"), ignore_errors=True)
                return result if was_met else "not met"

            yield f"no space at {first} of {name}", outcome


def test_some_full_disks(world, folder):
    for description, outcome in full_disks(world, "overwrite with combine", folder, 5):
        assert outcome(), description


@pytest.mark.soak
@pytest.mark.parametrize("name", WITH_SPACE)
def test_no_space_at_any_file_operation(world, folder, name):
    counts = Family("full disk", name)
    for description, outcome in full_disks(world, name, folder, 1):
        counts.attempt(description, outcome)
    del counts.counts["not met"]
    counts.finish()


def small_disks(world, name, folder, sizes):
    case = world.case(name)
    states, expected = recorded(case, folder / "once")
    needed = needed_pages(states)
    for number in range(sizes):
        free = 1 + round(needed * number / (sizes - 1))
        earlier = partial(states.write, states.moments[0][1]["kill"])
        yield f"{free} of {needed} pages for {name}", partial(
            on_small_disk, case, expected, folder / f"size-{number}", earlier, free
        )


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_some_small_disks(world, folder):
    for description, outcome in small_disks(world, "overwrite a finished run", folder, 3):
        assert outcome(), description


@pytest.mark.soak
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
@pytest.mark.parametrize("name", WITH_SPACE)
def test_small_disks(world, folder, name):
    counts = Family("small disk", name)
    for description, outcome in small_disks(world, name, folder, SIZES):
        counts.attempt(description, outcome)
    counts.finish()


def flips_of(world, kind, folder, count):
    """Yield the flips in an output, each with the function that tries it."""
    source, use = folder / "source", opened
    if kind == "adapter":
        shutil.copytree(world.folder / "a" / "adapter", source)
    elif kind == "run":
        shutil.copytree(world.folder / "a", source)
    elif kind == "merged model":
        shutil.copytree(world.folder / "merged", source)
        use = opened_model
    else:
        forked(world.unfinished_in, folder)
        (folder / "out").rename(source)
        use = resumed
    right = forked(result_of, source, use, folder / "right")
    for number, (name, position, bit) in enumerate(flips(source, count)):
        root = folder / str(number)

        def outcome(root=root, where=(name, position, bit)):
            result = forked(flipped, source, *where, root, use, right)
            shutil.rmtree(root)
            return result

        yield name, f"{kind}: bit {bit} of byte {position} in {name}", outcome


@pytest.mark.parametrize("kind", FLIPPED[:2])
def test_some_flipped_bits(world, folder, kind):
    outcomes = Counter(outcome() for _, _, outcome in flips_of(world, kind, folder, 3))
    assert outcomes["one_line"] >= 3
    assert outcomes["same_bytes"] >= 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", FLIPPED)
def test_flipped_bits(world, folder, kind):
    counts = Family("bit flips", kind)
    for name, description, outcome in flips_of(world, kind, folder, 48):
        before = counts.counts["undetected"]
        counts.attempt(description, outcome)
        counts.undetected[name] += counts.counts["undetected"] - before
    counts.undetected = +counts.undetected
    counts.finish()


def at_once(folder, *commands):
    """Run commands in processes that begin together, in one folder; return how they ended."""
    read, write = os.pipe()
    ends_of, children = [], []
    for number, command in enumerate(commands):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent closes the pipe

            def run(command=command):
                os.chdir(folder)
                return ends(command)

            outcome = forked(run)
            (folder.parent / f"outcome-{number}").write_text(repr((outcome.code, outcome.out, outcome.err)))
            os._exit(0)
        children.append(child)
    os.close(read)
    os.close(write)
    for number, child in enumerate(children):
        os.waitpid(child, 0)
        ends_of.append(Outcome(*eval((folder.parent / f"outcome-{number}").read_text())))
    return ends_of


def one_winner(world, name, folder):
    """Run a command twice at once: one of them ends well, the other in one line."""
    case = world.case(name)
    states, expected = recorded(case, folder / "once")
    states.write(states.moments[0][1]["kill"], folder / "both")
    outcomes = at_once(folder / "both", case.command, case.command)
    lines = [line for line in map(said, outcomes) if line is not None]
    assert len(lines) <= 1, outcomes
    for line in lines:
        assert any(words in line for words in ("in use by process", "holds a run", "is finished")), line
    assert content(folder / "both" / "out") == expected.new
    tidy(folder / "both")
    return "one_line" if lines else "same_bytes"


def test_two_processes_in_one_folder(world, folder):
    assert one_winner(world, "overwrite a finished run", folder) == "one_line"


@pytest.mark.soak
@pytest.mark.parametrize("name", ["train with checkpoints", "resume", "overwrite a finished run", "train an ensemble"])
def test_two_runs_at_once(world, folder, name):
    counts = Family("two processes", name)
    for number in range(10):
        (folder / str(number)).mkdir()
        counts.attempt(f"{name} {number}", one_winner, world, name, folder / str(number))
    counts.finish()


@pytest.mark.soak
def test_four_processes_that_save_into_one_folder(world, folder):
    counts = Family("two processes", "save an adapter in four processes")
    names = ("save an adapter", "save over another adapter", "save adapters together", "save over adapters saved together")
    cases = [world.case(name) for name in names]
    contents = [recorded(case, folder / case.name)[1].new for case in cases]
    (folder / "all").mkdir()

    def attempt():
        lines = [said(outcome) for outcome in at_once(folder / "all", *(case.command for case in cases))]
        assert None in lines, lines
        assert all("in use by" in line for line in lines if line), lines
        assert content(folder / "all" / "out") in contents
        tidy(folder / "all")
        return "one_line" if any(lines) else "same_bytes"

    for number in range(SAVES):
        counts.attempt(f"save {number}", attempt)
    counts.finish()
