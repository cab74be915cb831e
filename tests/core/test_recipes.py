"""Ways to quantize a layer at a width: their sizes, names, and that no rival stores more than the first."""

import pytest

from arrowquant_nb.core.recipes import Recipe, recipes
from arrowquant_nb.quantizers.layout import Layout, grid_of


def named(*arguments, **more):
    return [recipe.label for recipe in recipes(*arguments, **more)]


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        (Recipe(4, "uls", 64, False), 4.5),
        (Recipe(2, "uls", 64, False), 2.5),
        (Recipe(2, "r2q", 128, False), 2.375),
        (Recipe(4, "rtn", 32, False), 4 + 20 / 32),
        (Recipe(4, "uls", 32, False, "k"), 4.5),
        (Recipe(4, "uls", 64, False, "k"), 4.3125),
        (Recipe(2, "uls", 16, False, "k"), 2.625),
        (Recipe(2, "uls", 32, False, "k"), 2.375),
    ],
)
def test_bits_per_weight_are_those_of_whole_rows(recipe, bits):
    assert recipe.bits_per_weight == bits


def test_scale_format_k_has_its_own_groups_at_every_width():
    assert named(["uls"], 2, 16, False, "k") == ["uls k g16"]
    assert named(["uls"], 4, 16, False, "k") == ["uls k g32"]
    assert named(["uls"], 4, 64, True, "k") == ["gptq over uls k g64"]
    assert named(["uls"], 8, 16, False, "k") == ["uls g64"]
    assert named(["uls"], 8, 128, False) == ["uls g128"]


def test_a_rival_has_float16_parameters_and_the_smallest_groups_that_fit():
    assert named(["uls", "r2q"], 2, 64, False, columns=1024) == ["uls g64", "r2q g128"]
    assert named(["uls", "r2q"], 2, 16, True, "k", 1024) == ["gptq over uls k g16", "gptq over r2q g128"]
    assert named(["uls", "r2q"], 2, 32, False, "k", 1024) == ["uls k g32", "r2q g128"]
    assert named(["uls", "r2q"], 4, 32, False, "k", 1024) == ["uls k g32"]


@pytest.mark.parametrize(("size", "scales"), [(32, "float16"), (64, "float16"), (128, "float16"), (16, "k"), (32, "k")])
def test_no_rival_stores_more_whatever_the_row(size, scales):
    for columns in range(1, 800):
        first, *rivals = recipes(["uls", "r2q"], 2, size, False, scales, columns)
        stored = Layout(3, columns, 2, first.group_size, grid_of("uls", scales)).nbytes()
        for rival in rivals:
            assert Layout(3, columns, 2, rival.group_size, "levels").nbytes() <= stored
