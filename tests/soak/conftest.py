"""Inputs of the commands that are stopped, and a folder for what they write."""

import os
import shutil
import time
from pathlib import Path

import pytest
from crash_cases import World


@pytest.fixture(scope="session")
def world(tiny_llama_folder, tmp_path_factory):
    before = Path.cwd()
    yield World(tiny_llama_folder, tmp_path_factory.mktemp("world"))
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
