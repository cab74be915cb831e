"""How the bundled samples were trained: `python -m arrowquant_nb.samples.train [name]`.

It needs torch, diffusers, transformers and scikit-learn (extra `train`), each imported where it is used. It trains the
libraries' own classes, saves their standard folders, and measures what it saved with the NumPy code that users run.
Nothing else in the package imports it. Every draw is seeded; another machine or torch build still gives other
roundings, so other weights.
"""
