"""The NumPy BERT agrees with transformers, masks held-out text as it says, and writes the same for the same seed."""

import json
import math
import shutil

import ml_dtypes
import numpy as np
import pytest

from arrowquant_nb import samples
from arrowquant_nb.samples.masked_lm import MaskedLM
from arrowquant_nb.samples.runnable import Step
from arrowquant_nb.samples.vocabulary import MASK, N_SPECIAL, TOKENS, encode

NAMES = ("docs-mlm", "stdlib-mlm")
FOLDER = samples.WEIGHTS / "docs-mlm"
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def model():
    return samples.runnable("docs-mlm")


@pytest.fixture
def step():
    ids = np.random.default_rng(0).integers(2, len(TOKENS), (3, 40))
    return Step({"input_ids": ids}, 480)


def test_layers_cover_every_matrix_but_the_position_tables(model):
    tables = {"bert.embeddings.position_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"}
    matrices = {name: array.shape for name, array in model.weights.items() if array.ndim == 2}
    assert model.layers() == {name: shape for name, shape in matrices.items() if name not in tables}
    assert len(model.layers()) == 6 * model.config.n_layers + 2


def test_the_hook_sees_every_layer_once_in_the_order_of_use(model, step):
    seen = []

    def hook(name, x, time):
        seen.append((name, x.shape, x.dtype, time))
        return model.linear(name, x, time)

    output = model.forward(step, hook)
    assert output.shape == (3, 40, len(TOKENS))
    assert output.dtype == np.float32
    assert [name for name, *_ in seen] == list(model.layers())
    for name, shape, dtype, time in seen:
        assert shape == (3, 40, model.layers()[name][1])
        assert dtype == np.float32
        assert time == 480


def test_every_tensor_of_the_model_reaches_the_output(model, step):
    plain = model.forward(step)
    rng = np.random.default_rng(1)
    for name, array in model.weights.items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        changed = samples.runnable("docs-mlm", {**model.weights} | {name: array + noise})
        if name.endswith("key.bias"):  # it adds the same to all scores of a query, which softmax takes away
            np.testing.assert_allclose(changed.forward(step), plain, atol=1e-3)
        else:
            assert np.abs(changed.forward(step) - plain).max() > 1e-3, name


def test_a_text_is_read_alone_and_both_ways(model, step):
    whole = model.forward(step)
    ids = step.inputs["input_ids"]
    np.testing.assert_allclose(model.forward(Step({"input_ids": ids[1:2]}, 480)), whole[1:2], atol=1e-4)
    later = ids.copy()
    later[0, 20] = 10 if ids[0, 20] != 10 else 11
    changed = np.abs(model.forward(Step({"input_ids": later}, 480)) - whole)
    assert changed[0, :20].max() > 1e-3
    assert changed[0, 21:].max() > 1e-3
    assert changed[1:].max() == 0


def test_a_text_longer_than_the_model_has_positions_is_refused(model):
    with pytest.raises(ValueError, match="65 characters long; the model has 64"):
        model.forward(Step({"input_ids": np.zeros((1, 65), np.int64)}, 0))


def test_weights_that_do_not_fit_are_refused_by_name(model):
    weights = dict(model.weights)
    with pytest.raises(ValueError, match=r"lack 1 of .* first 'cls\.predictions\.bias'"):
        samples.runnable("docs-mlm", {n: a for n, a in weights.items() if n != "cls.predictions.bias"})
    with pytest.raises(ValueError, match=r"no place for 1 of .* first 'stray'"):
        samples.runnable("docs-mlm", weights | {"stray": np.zeros(1)})
    with pytest.raises(ValueError, match=r"'cls\.predictions\.bias' has shape \[3\].*\[99\]"):
        samples.runnable("docs-mlm", weights | {"cls.predictions.bias": np.zeros(3)})


def test_weights_are_read_only_copies_of_any_float_type(model):
    given = {name: array.astype(ml_dtypes.bfloat16) for name, array in model.weights.items()}
    rounded = samples.runnable("docs-mlm", given)
    name = "cls.predictions.transform.dense.weight"
    assert rounded.weights[name].dtype == np.float32
    np.testing.assert_array_equal(rounded.weights[name], given[name].astype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        rounded.weights[name][0] = 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "relu"), ("architectures", ["BertModel"]), ("tie_word_embeddings", False), ("vocab_size", 128)],
)
def test_a_variant_that_is_not_implemented_is_refused_by_field(tmp_path, field, value):
    folder = shutil.copytree(FOLDER, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {field: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{field} is "):
        MaskedLM.from_folder(folder)


@every
def test_a_trajectory_unmasks_held_out_text_bit_by_bit(name):
    model = samples.runnable(name)
    windows = model.windows(5, 3, "evaluation")
    steps = list(model.trajectories(5, 3, "evaluation"))
    assert [step.time for step in steps] == list(range(980, 0, -40))
    hidden = np.ones(windows.shape, bool)
    for step in steps:
        ids = step.inputs["input_ids"]
        masked = ids == MASK
        np.testing.assert_array_equal(ids[~masked], windows[~masked])
        assert (masked.sum(1) == round(64 * step.time / 1000)).all()
        assert not (masked & ~hidden).any()  # what was visible stays visible
        hidden = masked


@every
def test_parts_are_apart_and_the_seed_chooses_places_and_masks(name):
    model = samples.runnable(name)
    texts = {
        split: (samples.load(name) / "held_out" / f"{split}.txt").read_text(encoding="utf-8")
        for split in ("calibration", "evaluation")
    }
    assert all(15_000 < len(text) < 40_000 for text in texts.values())
    for split, other in (("calibration", "evaluation"), ("evaluation", "calibration")):
        for window in model.windows(8, 1, split):
            text = samples.decode(window)
            assert text in samples.decode(encode(texts[split]))
            assert text not in samples.decode(encode(texts[other]))
    first, again, another, other_part = (
        [step.inputs["input_ids"] for step in model.trajectories(2, *arguments)]
        for arguments in ((0,), (0,), (1,), (0, "evaluation"))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, another)
    assert not np.array_equal(first, other_part)
    np.testing.assert_array_equal(first, [s.inputs["input_ids"] for s in model.trajectories(2, 0, "calibration")])


@every
def test_the_trained_model_knows_more_with_more_in_sight(name):
    """Far better than letter frequencies (about 3.2 nats) when a tenth is masked, and worse the more is masked."""
    model = samples.runnable(name)
    windows = model.windows(24, 0, "evaluation")
    losses = []
    for step in list(model.masked_steps(windows, 0))[2::10]:
        scores = model.forward(step).astype(np.float64)
        mask = step.inputs["input_ids"] == MASK
        logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        losses.append(-np.take_along_axis(logs, windows[..., None], -1)[..., 0][mask].mean())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < 3.3
    assert losses[-1] < 1.7


def test_sampling_repeats_with_its_seed_and_fewer_texts_are_the_first_of_more(model):
    texts = model.sample(3, 5, steps=8)
    assert texts.shape == (3, 64)
    assert ((texts >= N_SPECIAL) & (texts < len(TOKENS))).all()
    np.testing.assert_array_equal(texts, model.sample(3, 5, steps=8))
    assert (model.sample(3, 6, steps=8) != texts).any()
    np.testing.assert_array_equal(model.sample(1, 5, steps=8), texts[:1])


def test_each_call_of_sampling_unmasks_its_share_and_keeps_the_rest(model):
    seen = []

    def hook(name, x, time):
        if name == "cls.predictions.transform.dense.weight":
            seen.append(time)
        return model.linear(name, x, time)

    model.sample(1, 0, steps=4, linear=hook)
    assert seen == [999, 750, 500, 250]
    seen.clear()
    model.sample(1, 0, linear=hook)
    assert len(seen) == 64
    assert seen == sorted(seen, reverse=True)


def test_temperature_zero_takes_the_likeliest_and_a_hook_that_is_silent_only_the_bias(model):
    best = int(np.argmax(model.weights["cls.predictions.bias"][N_SPECIAL:])) + N_SPECIAL
    silent = model.sample(2, 0, 3, 0.0, linear=lambda name, x, time: 0 * model.linear(name, x, time))
    assert (silent == best).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((0,), r"1\.\.64"), ((65,), r"1\.\.64"), ((4, -1.0), "negative"), ((4, math.nan), "negative")],
)
def test_impossible_settings_are_refused(model, arguments, match):
    with pytest.raises(ValueError, match=match):
        model.sample(1, 0, *arguments)


@pytest.mark.torch
@every
def test_the_forward_pass_agrees_with_transformers_to_1e_minus_4(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, info = transformers.BertForMaskedLM.from_pretrained(
        samples.load(name), dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model = samples.runnable(name)
    for step in list(model.trajectories(4, 2))[::6]:
        with torch.no_grad():
            expected = theirs.eval()(torch.from_numpy(step.inputs["input_ids"])).logits.numpy()
        assert np.abs(model.forward(step) - expected).max() <= 1e-4
