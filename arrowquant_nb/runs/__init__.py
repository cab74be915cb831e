"""One run from a checkpoint to a model folder: where `storage` and `core`, which do not know each other, are joined.

    planning.py      headers + config -> Plan and the tasks of the loop
    source.py        a checkpoint as the loop's source of weights, hashed while it is read
    sink.py          a model folder as the loop's sink
    control.py       events, progress, cancelling
    quantization.py  the run itself
    card.py          the model card
    validation.py    original against quantized, tensor by tensor
    dequantization.py  back to a safetensors folder of the original layout
    reproduction.py  a recorded run again, compared byte for byte
    inspection.py    what a folder holds, quantized or not
    record.py        statistics table, run record, the text of a failure

The public names are in `arrowquant_nb.api`.
"""
