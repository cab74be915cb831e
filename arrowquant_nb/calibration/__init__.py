"""Calibration: what the layers of a model are given while it denoises.

    statistics.py    the values: settings, captures of layers, a calibration and its hashes
    accumulation.py  statistics of one input, call by call; scratch.py where they are kept
    inputs.py        statistics of all inputs; layers that are given the same rows share them
    capture.py       along a model's own trajectories
    synthetic.py     from seeded noise
    records.py       from model inputs that the user gave
    files.py         record files in; whole calibrations in and out
    cache.py         calibrations by content
    call_time.py     the time at which a denoiser is called
    torch_layers.py, torch_capture.py, torch_runs.py
                     torch models: their layers, the hooks, and what is run

Runs models through the `RunnableModel` protocol, or torch models through their own sampling loop; without a model that
runs nothing is invented.
"""
