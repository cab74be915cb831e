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

The studio, `aq.studio`, is widgets that hold no logic, and pure functions beside them:

    app.py          joins the parts; studio_cell.py one app a cell, frame.py theme and page, worker.py threads and pump
    form.py         the settings, field_control.py one of them; model_picker.py, plan_section.py, forecast_panel.py,
                    run_section.py, settings_bar.py what stands around it
    run_place.py    where runs are shown: run_view.py the app's own, run_session.py its work, run_replay.py another one
    run_state.py    what is known of a run, from its events alone; run_words.py says it
    dashboard.py    a run: words, figure, table, layer_card.py the selected layer
    figure_box.py   the one figure; figure_widget.py its script, live_figure.py and charts/ what it draws

Nothing here decides, measures or writes. plotly and IPython are imported here only.
"""
