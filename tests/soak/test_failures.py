"""What is left after exceptions, signals, full disks and flipped bits, and when several processes write at once.

`make test` runs a few cases of each; `make soak` all of them, with counts as in test_crashes.py.
"""

import json
import os
import random
import shutil
from collections import Counter
from dataclasses import astuple
from functools import partial

import pytest
from commands import Outcome
from crash_cases import SLOW
from crash_checks import content, ends, recorded, said, tidy
from crash_disk import forked, forked_away
from crash_faults import FAILURES, PLACES, can_mount, failed, full_from, needed_pages, on_small_disk
from crash_flips import flipped, flips, opened, opened_model, result_of, resumed
from crash_totals import STEP, Family

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


def failures(world, folder, draws, names=FAILING, kinds=FAILURES):
    """Yield descriptions of failures at random moments, and a function that tries each."""
    draw = random.Random(0)
    cases = {name: (world.case(name), *recorded(world.case(name), folder / f"{name} once")) for name in names}
    for failure in kinds:
        for number in range(draws):
            case, states, expected = cases[draw.choice(names)]
            place = PLACES[number % len(PLACES)]
            when = draw.randrange(len(states.moments) if place == "file" else 6 if place == "backward" else 9)
            times = range(when, when + 4, 3) if failure.endswith("twice") else range(when, when + 1)
            root = folder / f"{failure}-{number}"

            def outcome(
                case=case, states=states, expected=expected, root=root, place=place, times=times, failure=failure
            ):
                states.write(states.moments[0][1]["kill"], root)
                result = failed(case, expected, root, place, times, failure)
                shutil.rmtree(root)
                shutil.rmtree(root.with_name(f"{root.name}-next"), ignore_errors=True)
                return result

            yield f"{failure} in {place} {when} of {case.name}", outcome


@pytest.mark.soak
def test_some_failures(world, folder):
    for description, outcome in failures(world, folder, 1, FAILING[1:2], FAILURES[1::3]):
        assert outcome(), description


@pytest.mark.soak
def test_failures_at_random_moments(world, folder):
    counts = Family("exceptions")
    for description, outcome in failures(world, folder, max(3, 27 // STEP)):
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
    for description, outcome in full_disks(world, "overwrite with combine", folder, 8):
        assert outcome(), description


@pytest.mark.soak
@pytest.mark.parametrize("name", WITH_SPACE)
def test_no_space_at_any_file_operation(world, folder, name):
    counts = Family("full disk", name)
    for description, outcome in full_disks(world, name, folder, STEP * (3 if name in SLOW else 1)):
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
        yield (
            f"{free} of {needed} pages for {name}",
            partial(on_small_disk, case, expected, folder / f"size-{number}", earlier, free),
        )


@pytest.mark.soak
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


@pytest.mark.parametrize(("kind", "count"), [("adapter", 3), ("run", 2), ("unfinished run", 1)])
def test_some_flipped_bits(world, folder, kind, count):
    outcomes = Counter(outcome() for _, _, outcome in flips_of(world, kind, folder, count))
    assert not outcomes["undetected"]
    assert outcomes["one_line"] >= 2
    assert outcomes["same_bytes"] >= 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", FLIPPED)
def test_flipped_bits(world, folder, kind):
    counts = Family("bit flips", kind)
    for name, description, outcome in flips_of(world, kind, folder, 48 // STEP):
        before = counts.counts["undetected"]
        counts.attempt(description, outcome)
        counts.undetected[name] += counts.counts["undetected"] - before
    counts.undetected = +counts.undetected
    counts.finish()


def at_once(folder, *commands):
    """Run commands in processes that begin together, in one folder; return how they ended."""
    read, write = os.pipe()

    def run(number):
        os.close(write)
        os.read(read, 1)  # until the parent closes the pipe
        os.chdir(folder)
        (folder.parent / f"outcome-{number}").write_text(json.dumps(astuple(ends(commands[number]))))

    children = [forked_away(partial(run, number)) for number in range(len(commands))]
    os.close(read)
    os.close(write)
    for child in children:
        os.waitpid(child, 0)
    return [Outcome(*json.loads((folder.parent / f"outcome-{number}").read_text())) for number in range(len(commands))]


def one_winner(world, name, folder):
    """Run a command twice at once: one of them ends well, the other in one line."""
    case = world.case(name)
    states, expected = recorded(case, folder / "once")
    states.write(states.moments[0][1]["kill"], folder / "both")
    outcomes = at_once(folder / "both", case.command, case.command)
    lines = [line for line in map(said, outcomes) if line is not None]
    assert len(lines) <= 1, outcomes
    for line in lines:
        assert any(words in line for words in ("is in use by", "holds a run", "is finished")), line
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
    names = (
        "save an adapter",
        "save over another adapter",
        "save adapters together",
        "save over adapters saved together",
    )
    cases = [world.case(name) for name in names]
    contents = [recorded(case, folder / case.name)[1].new for case in cases]
    (folder / "all").mkdir()

    def attempt():
        lines = [said(outcome) for outcome in at_once(folder / "all", *(case.command for case in cases))]
        assert None in lines, lines
        assert all("is in use by" in line for line in lines if line), lines
        assert content(folder / "all" / "out") in contents
        tidy(folder / "all")
        return "one_line" if any(lines) else "same_bytes"

    for number in range(SAVES):
        counts.attempt(f"save {number}", attempt)
    counts.finish()
