"""Static configurations: the row for this GPU, else its generation's, else sm 80's."""

from __future__ import annotations

import pytest

from acefast.backends import emulated
from acefast.kernel_config import Config, current_sm, pick

TABLE = {
    ("small", 80): Config({"ROWS": 4}, num_warps=8, num_stages=3),
    ("small", 86): Config({"ROWS": 3}),
    ("small", 120): Config({"ROWS": 2}),
    ("large", 80): Config({"ROWS": 8}),
}


@pytest.mark.parametrize(("sm", "rows"), [(80, 4), (86, 3), (120, 2), (121, 2), (89, 4), (90, 4), (100, 4)])
def test_the_nearest_row_is_taken(sm, rows):
    assert pick(TABLE, "small", sm)["ROWS"] == rows
    with emulated(sm):
        assert current_sm() == sm and pick(TABLE, "small")["ROWS"] == rows


def test_a_shape_class_without_a_row_names_those_there_are():
    with pytest.raises(KeyError, match="no configuration for shape class 'huge'; the table has large, small"):
        pick(TABLE, "huge", 80)


def test_options_are_the_keyword_arguments_of_a_launch():
    sizes = {"ROWS": 4, "BLOCK": 2, "num_warps": 8, "num_stages": 3}
    config = Config({"ROWS": 4, "BLOCK": 2}, num_warps=8, num_stages=3)
    assert config.options == {**sizes, "enable_fp_fusion": True}  # said outright: Triton's default changes
    exact = Config(config.tiles, 8, 3, compiler={"enable_fp_fusion": False, "maxnreg": 64})
    assert exact.options == {**sizes, "enable_fp_fusion": False, "maxnreg": 64}
