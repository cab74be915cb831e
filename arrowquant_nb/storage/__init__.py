"""Files: what users have (safetensors, folders of them) and what we write (Parquet V2 Extended).

    checkpoint.py          opens any source and lists its tensors without reading them
    |- source_folder.py      paths that stay inside the model, components of a pipeline
    |- weight_files.py       file names: stems, variants, shards
    |- shard_index.py        the JSON that says which shard holds which tensor
    |- safetensors_file.py   one file: header, byte ranges, reads that notice a change
    |- companions.py         scale tensors that belong to a float8 weight
    |- evidence.py           what the files say about the modality (the decision is in `core`)
    `- json_file.py          small JSON files, bounded
    policy.py              which tensors are quantized, at how many bits, and why
    `- policy_table.py       the same as data: rules per model class

Nothing here knows `core`, a widget or an event; `api` joins them.
"""
