"""Decisions and loops over plain values, compiled by mypyc where a compiler is at hand.

    modality.py      evidence -> modality and the reason    (data: modality_table.py)
    strategy.py      modality and settings -> method
    gates.py         quality gates and the fallback chain
    time_groups.py   timestep grouping: uniform and exact dynamic programming
    allocation.py    bits per layer under a size budget
    orchestrator.py  the one loop, over a source and a sink

No files, no threads, no widgets, no numpy inner loops; the same source runs interpreted and compiled.
"""
