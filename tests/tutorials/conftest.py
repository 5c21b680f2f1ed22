"""Working folders for the scripts of the tutorials."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import datasets
import pytest
from tutorial_bases import write_tutorial_files


@pytest.fixture(scope="session", autouse=True)
def _plain_output() -> Iterator[None]:
    """Keep caches out of the folders that the scripts share, and progress bars off the screen."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    yield
    datasets.enable_caching()
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def tutorial_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the bases and the data of all tutorials."""
    folder = tmp_path_factory.mktemp("tutorials")
    write_tutorial_files(folder)
    return folder


@pytest.fixture
def workspace(tutorial_files: Path, tmp_path: Path) -> Callable[[], Path]:
    """Make a folder, as a reader of a tutorial has it: the bases and the data."""
    numbers = count()

    def make() -> Path:
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        for item in tutorial_files.iterdir():
            (folder / item.name).symlink_to(item)
        return folder

    return make
