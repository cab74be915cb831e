"""What a notebook shows: figures and pictures from finished results, a progress line, and whole pages.

    layer_chart.py  per-layer quality: rows, then a plotly figure or an SVG of them
    sample_grid.py  images drawn from several models: a plotly figure or an SVG
    style.py        colours, symbols and the plotly layout that both share
    picture.py      a figure with its still twin, for readers without scripts
    progress.py     one line that moves while a run works
    page.py         an executed notebook as one HTML file
    compare.py      runs beside each other; compare_chart.py their figures, compare_controls.py sort, show, find
    report.py       a run as one HTML file; report_sections.py what stands in it, model_map.py where it hurts,
                    sample_pair.py what the model makes before and after, text_pair.py where two texts differ

Pure functions of values; nothing here decides, measures or writes. plotly and IPython are imported here only.
"""
