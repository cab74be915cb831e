"""The panels of the live figure: pure functions from values to plotly traces, and the one layout that holds them.

A trace is a plain dictionary, complete with its style, so that a painter can compare it with what is shown and send
only what differs. Nothing here knows widgets, threads or files.

    layout.py        where each panel lies, in pixels
    worst_list.py    the layers, worst first            block_map.py    where in the model
    size_plan.py     size so far against plan           time_ranges.py  activation range over timesteps
    layer_panels.py  one layer: weights, error, scales, timestep groups
"""
