"""The form and the settings go into each other exactly, and what is wrong is said beside its field."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arrowquant_nb.config import DiffusionQuantConfig, available_fields, field_facts
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.ui.form import ADVANCED_GROUPS, Form

# One valid value per field that differs from every profile.
OTHER = {
    "deployment_profile": "edge", "bit_width": 2, "group_size": 256, "method": "mse",
    "min_accuracy": 0.123456789,
    "gain_correction": False, "fail_fast": True, "skip_sensitive_layers": True,
    "sensitive_layer_names": ["a.b.weight"], "sensitive_layer_patterns": [r"attn\d+\.to_q"],
    "layer_bit_widths": {"blocks.*.ff: x": 8, "head": 16}, "layer_methods": {"*.ff: x": "r2q", "head": "mse"},
    "modality": "image", "enable_time_aware": False,
    "enable_spatial": False, "fold_equalization": False, "num_time_groups": 7, "calibration_samples": 33,
    "activation_bit_width": 8,
    "min_output_sqnr_db": 12.5, "min_network_sqnr_db": 30.5, "scale_format": "float16", "rotation": "auto",
    "low_rank": 3,
    "target_model_size_mb": 1.5,
    "num_threads": 3, "seed": 2**63 - 1,
}  # fmt: skip
# A value that is refused, as typed.
BAD = {
    "min_accuracy": "1.2", "num_time_groups": "0", "calibration_samples": "lots", "min_output_sqnr_db": "high",
    "low_rank": "129", "num_threads": "-1", "seed": "1.5",
    "sensitive_layer_patterns": "(", "layer_bit_widths": "head: 3", "layer_methods": "head: best",
    "target_model_size_mb": "-1",
}  # fmt: skip


@pytest.fixture(scope="module")
def form():
    return Form()


def test_every_available_field_has_a_control_and_no_other(form):
    assert set(form.controls) == set(available_fields())
    assert set(OTHER) == set(field_facts()), "a new field: say here what else it can be"


def test_every_advanced_field_has_a_place_in_a_named_group():
    advanced = {name for name, facts in field_facts().items() if facts["group"] != "basic"}
    assert advanced == {name for group in ADVANCED_GROUPS.values() for name in group}


def test_seven_settings_are_in_view_and_all_others_fold(form):
    assert len(form.basic.children) == 7
    assert form.advanced.selected_index is None
    assert f"Advanced settings ({len(available_fields()) - 7};" in form.advanced.get_title(0)


@pytest.mark.parametrize("name", available_fields())
def test_each_field_can_be_set_from_the_form_and_shows_that_it_changed(form, name):
    form.set_config(DiffusionQuantConfig())
    form.controls[name].value = OTHER[name]
    assert form.complaints == {}
    assert form.config.to_dict()[name] == OTHER[name]
    if name != "deployment_profile":
        assert name in form.changed
        assert "changed" in form._marks[name].value
    assert str(field_facts()[name]["range"]) in form.controls[name].main.tooltip


@pytest.mark.parametrize("name", [n for n in BAD if n in available_fields()])
def test_a_refused_value_is_said_beside_its_field_and_leaves_no_config(form, name):
    form.set_config(DiffusionQuantConfig())
    form.controls[name].main.value = BAD[name]
    assert form.config is None
    assert set(form.complaints) == {name}
    assert "role='alert'" in form._messages[name].value
    assert "aq-refused" in form.controls[name].main._dom_classes
    form.reset.click()
    assert form.config == DiffusionQuantConfig()
    assert form._messages[name].value == ""
    assert "aq-refused" not in form.controls[name].main._dom_classes


def test_the_words_for_a_bad_quality_floor(form):
    form.set_config(DiffusionQuantConfig())
    form.controls["min_accuracy"].main.value = "1.2"
    assert form.complaints["min_accuracy"] == "Quality floor (cosine) is 1.2; it must be between 0 and 1."


def test_several_refused_values_are_all_said(form):
    form.set_config(DiffusionQuantConfig())
    form.controls["min_accuracy"].main.value = "2"
    form.controls["seed"].main.value = "x"
    assert set(form.complaints) == {"min_accuracy", "seed"}


def test_another_profile_refills_what_the_old_one_had_filled_in_and_keeps_changes(form):
    form.set_config(DiffusionQuantConfig(seed=5))
    form.controls["deployment_profile"].value = "edge"
    assert form.config == DiffusionQuantConfig.from_profile("edge", seed=5)
    assert form.config.sources["bit_width"] == "profile edge"
    assert form.changes.value == "changed: 1 change"


def test_what_a_profile_fills_in_follows_a_change_and_is_shown(form):
    form.set_config(DiffusionQuantConfig())
    form.controls["group_size"].value = 256
    assert form.config == DiffusionQuantConfig(group_size=256)
    assert form.controls["scale_format"].value == str(form.config.scale_format) == "float16"


def test_a_group_of_sixteen_is_offered_only_where_the_scales_have_it(form):
    def offered():
        return [n for _, n in form.controls["group_size"].main.options]

    form.set_config(DiffusionQuantConfig.from_profile("edge"))
    assert form.config.group_size == 16
    form.controls["scale_format"].value = "float16"
    assert form.config.group_size == form.controls["group_size"].value == 32
    form.controls["deployment_profile"].value = "cloud"
    assert 16 not in offered()
    form.controls["group_size"].value = 16
    assert set(form.complaints) == {"group_size"}


def test_sliders_and_texts_follow_each_other(form):
    form.set_config(DiffusionQuantConfig())
    slider = form.controls["num_time_groups"].widget.children[0]
    assert slider.value == 10
    slider.value = 12
    assert form.config.num_time_groups == 12
    form.controls["num_time_groups"].main.value = "99"
    assert form.config.num_time_groups == 99, "the text goes beyond the slider's end"
    assert slider.value == slider.max


def test_size_labels_change_no_setting(form):
    form.set_config(DiffusionQuantConfig.from_profile("edge"))
    form.label_widths({2: "3.1 MB", 4: "4.9 MB"})
    assert form.config == DiffusionQuantConfig.from_profile("edge")
    assert [label for label, _ in form.controls["bit_width"].main.options] == ["INT2  3.1 MB", "INT4  4.9 MB", "INT8"]


_names = st.text(min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    profile=st.sampled_from(["edge", "local", "cloud", "base_mode"]),
    changes=st.fixed_dictionaries({}, optional={
        "bit_width": st.sampled_from([2, 4, 8]), "group_size": st.sampled_from([32, 64, 128, 256]),
        "min_accuracy": st.floats(0, 1), "num_time_groups": st.integers(1, 100), "seed": st.integers(0, 2**63 - 1),
        "method": st.sampled_from(["auto", "rtn", "mse", "uls", "hqq", "gptq"]), "fail_fast": st.booleans(),
        "min_output_sqnr_db": st.none() | st.floats(-1e6, 1e6), "sensitive_layer_names": st.lists(_names, max_size=3),
        "layer_bit_widths": st.dictionaries(_names, st.sampled_from([2, 4, 8, 16]), max_size=3),
        "layer_methods": st.dictionaries(_names, st.sampled_from(["auto", "r2q", "gptq"]), max_size=2),
        "modality": st.sampled_from([None, "text", "audio"]), "num_threads": st.integers(0, 1024),
    }),
)  # fmt: skip
def test_any_settings_come_out_of_the_form_as_they_went_in(form, profile, changes):
    try:
        config = DiffusionQuantConfig.from_profile(profile, **changes)
    except ConfigurationError:  # settings that do not go together
        return
    form.set_config(config)
    assert form.complaints == {}
    assert form.config == config
