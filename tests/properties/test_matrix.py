"""Every method on every task and architecture: one property a test, see `matrix_properties`."""

import pytest
from matrix import cells
from matrix_properties import check, checks_of
from tiny import tiny_model

from peftly import attach
from peftly.errors import MethodError

ALL = cells()
CELLS = [cell for cell in ALL if cell.reason_left_out is None]


def test_a_cell_is_left_out_for_a_reason_that_the_method_gives():
    left_out = [cell for cell in ALL if cell not in CELLS]
    print(f"\n{len(CELLS)} of {len(ALL)} cells; left out:")
    for cell in left_out:
        print(f"  {cell}: {cell.reason_left_out}")
        with pytest.raises(MethodError) as caught:
            attach(tiny_model(cell.architecture, task=cell.task), cell.config())
        assert str(caught.value) == cell.reason_left_out
    assert len(CELLS) > 0.85 * len(ALL)


@pytest.mark.sample(16)
@pytest.mark.parametrize(("cell", "name"), checks_of(CELLS))
def test_cell(cell, name, tmp_path):
    check(cell, name, tmp_path)
