"""Listings of models before and after quantization."""

import json
import pickle

import pytest

from arrowquant_nb import ArrowQuantV2, DiffusionQuantConfig, ModelNotFoundError
from arrowquant_nb.runs.inspection import Listing, inspect_model


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "<i>model"
    result = ArrowQuantV2(DiffusionQuantConfig(calibration_samples=4)).quantize_diffusion_model("digits-dit", folder)
    return inspect_model("digits-dit"), inspect_model(folder), result


def test_both_list_the_same_tensors_with_the_same_shapes(both):
    before, after, _ = both
    assert {t.name: t.shape for t in before.tensors} == {t.name: t.shape for t in after.tensors}
    assert {t.stored_as for t in before.tensors} == {"float16"}


def test_sizes_agree_with_the_run(both):
    _, after, result = both
    assert sum(t.nbytes for t in after.tensors) == result.payload_nbytes
    assert {t.name: t.nbytes for t in after.tensors} == {r.name: r.nbytes for r in result.layers}


def test_listings_round_trip(both):
    for listing in both[:2]:
        assert Listing.from_dict(json.loads(json.dumps(listing.to_dict()))) == listing
        assert pickle.loads(pickle.dumps(listing)) == listing


def test_names_from_outside_are_escaped(both):
    assert "<i>" not in both[1]._repr_html_()


def test_nothing_there_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="absent"):
        inspect_model(tmp_path / "absent")
