"""The live figure: its script travels once, and each figure names it."""

import plotly.graph_objects as go

from arrowquant_nb.ui.charts.block_map import BlockMap
from arrowquant_nb.ui.figure_box import FigureBox
from arrowquant_nb.ui.layer_list import ListView
from arrowquant_nb.ui.live_figure import Scene
from arrowquant_nb.ui.run_state import RunState


def test_figures_that_follow_each_other_share_one_script():
    box = FigureBox(lambda _: None)
    scene = Scene(RunState(), ListView(), BlockMap((), (), {}), 1)
    box.draw(scene)
    first = box.figure.get_state()
    box.theme = "dark"
    box.draw(scene)
    second = box.figure.get_state()
    assert box.n_made == 2
    assert second["_script"] == first["_script"]
    script = box.figure._script
    assert len(script.code) > 1_000_000
    # The script of plotly's own figures is five megabytes.
    assert len(first["_esm"]) < 5_000
    assert go.FigureWidget().get_state()["_esm"].encode() == script.code
