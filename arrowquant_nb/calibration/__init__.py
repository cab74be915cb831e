"""Calibration: what the layers of a model are given while it denoises.

    statistics.py    the values: settings, captures of layers, a calibration and its hashes
    accumulation.py  statistics of one input, call by call
    capture.py       along a model's own trajectories
    synthetic.py     from seeded noise
    records.py       from model inputs that the user gave
    files.py         record files in; whole calibrations in and out
    cache.py         calibrations by content

Runs models through the `RunnableModel` protocol only; without a model that runs nothing is invented.
"""
