"""Settings: what each profile fills in, who goes before whom, and what is refused with which words."""

import contextlib
import copy
import json
import pickle
import time

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb.config import DiffusionQuantConfig, available_fields, field_facts
from arrowquant_nb.errors import ArrowQuantError, ConfigurationError, OutputError

# The table of the contract, written out: field -> (edge, local, cloud, base_mode).
TABLE = {
    "bit_width": (2, 4, 8, 4),
    "modality": (None, None, None, None),
    "num_time_groups": (5, 10, 20, 1),
    "group_size": (16, 32, 64, 128),
    "enable_time_aware": (True, True, True, False),
    "enable_spatial": (False, True, True, False),
    "fold_equalization": (True, True, True, True),
    "min_accuracy": (0.90, 0.98, 0.999, 0.90),
    "calibration_samples": (32, 128, 512, 128),
    "deployment_profile": ("edge", "local", "cloud", "local"),
    "fail_fast": (False, False, False, False),
    "num_threads": (0, 0, 0, 0),
    "activation_bit_width": (None, None, None, None),
    "min_output_sqnr_db": (None, None, None, None),
    "min_network_sqnr_db": (None, None, None, None),
    "method": ("auto", "auto", "auto", "rtn"),
    "scale_format": ("k", "k", "float16", "float16"),
    "rotation": ("none", "none", "none", "none"),
    "low_rank": (0, 0, 0, 0),
    "gain_correction": (True, True, True, False),
    "skip_sensitive_layers": (False, False, False, False),
    "sensitive_layer_names": ([], [], [], []),
    "sensitive_layer_patterns": ([], [], [], []),
    "layer_bit_widths": ({}, {}, {}, {}),
    "layer_methods": ({}, {}, {}, {}),
    "target_model_size_mb": (None, None, None, None),
    "seed": (0, 0, 0, 0),
}
PROFILES = ("edge", "local", "cloud", "base_mode")


def refusal(**values) -> str:
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig(**values)
    return str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_fills_in_its_column(profile):
    column = {field: row[PROFILES.index(profile)] for field, row in TABLE.items()}
    assert DiffusionQuantConfig.from_profile(profile).to_dict() == column
    assert DiffusionQuantConfig(deployment_profile=profile).to_dict() == column


def test_without_arguments_it_is_the_local_profile():
    config = DiffusionQuantConfig()
    assert config == DiffusionQuantConfig.from_profile("local")
    assert config.sources["deployment_profile"] == "default"
    assert {source for name, source in config.sources.items() if name != "deployment_profile"} == {"profile local"}


def test_settings_print_as_a_table_with_their_sources():
    config = DiffusionQuantConfig(layer_bit_widths={"<b>": 8}, fail_fast=True)
    lines = str(config).splitlines()
    assert lines[0].split() == ["setting", "value", "unit", "from"]
    assert len(lines) == 2 + len(available_fields())
    assert ["fail_fast", "true", "argument"] in [line.split() for line in lines]
    assert "<b>" not in config._repr_html_()


def test_an_argument_goes_before_the_profile():
    config = DiffusionQuantConfig.from_profile("edge", bit_width=8)
    assert (config.bit_width, config.group_size) == (8, 32)
    assert config.sources["bit_width"] == "argument"
    assert config.sources["group_size"] == "profile edge"


def test_every_field_says_what_it_is():
    facts = field_facts()
    assert set(facts) == set(TABLE)
    for name, fact in facts.items():
        assert fact["title"], name
        assert str(fact["description"]).endswith("."), name
        assert fact["range"], name
        assert fact["group"] in ("basic", "advanced"), name
        assert fact["kind"] in ("integer", "number", "flag", "word", "words", "table"), name
        assert "unit" in fact, name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bit_width": 3}, "argument: bit_width = 3 is refused; it must be 2, 4 or 8."),
        ({"bit_width": True}, "bit_width = True is refused"),
        ({"bit_width": 4.0}, "bit_width = 4.0 is refused"),
        ({"bit_width": "4"}, "bit_width = '4' is refused"),
        ({"group_size": 48}, "group_size = 48 is refused; it must be 32, 64, 128 or 256; 16 too with scale_format k."),
        ({"min_accuracy": 1.2}, "min_accuracy = 1.2 is refused; it must be between 0 and 1."),
        ({"min_accuracy": float("nan")}, "min_accuracy = nan is refused"),
        ({"min_accuracy": True}, "min_accuracy = True is refused"),
        ({"min_accuracy": 10**400}, "min_accuracy = 1000"),
        ({"num_threads": -1}, "num_threads = -1 is refused; it must be 0 to 1024."),
        ({"num_threads": np.arange(3)}, "num_threads = array([0, 1, 2]) is refused"),
        ({"seed": -1}, "seed = -1 is refused"),
        ({"fail_fast": 1}, "fail_fast = 1 is refused; it must be true or false."),
        ({"modality": "TEXT"}, "modality = 'TEXT' is refused; it must be text, code, image, audio or none. Did you"),
        ({"modality": " text "}, 'Did you mean "text"?'),
        ({"method": "hqqq"}, "method = 'hqqq' is refused; it must be auto, rtn, mse, uls, hqq, r2q or gptq."),
        ({"deployment_profile": "edgy"}, 'Did you mean "edge"?'),
        ({"deployment_profile": ["edge"]}, "deployment_profile = ['edge'] is refused"),
        ({"layer_bit_widths": {"proj": 3}}, "layer_bit_widths['proj'] = 3 is refused; it must be layer names or globs"),
        ({"layer_bit_widths": {"": 4}}, "layer_bit_widths[''] = '' is refused"),
        ({"layer_methods": {"proj": "best"}}, "layer_methods['proj'] = 'best' is refused; it must be layer names"),
        ({"layer_methods": {"": "mse"}}, "layer_methods[''] = '' is refused"),
        ({"layer_bit_widths": [("a", 4)]}, "layer_bit_widths = [('a', 4)] is refused"),
        ({"sensitive_layer_names": "head"}, "sensitive_layer_names = 'head' is refused; it must be a list"),
        ({"sensitive_layer_names": ["head", 3]}, "sensitive_layer_names[1] = 3 is refused"),
        ({"sensitive_layer_patterns": ["ok", "(["]}, "sensitive_layer_patterns[1] = '([' is refused (not a regular"),
        ({"bitwidth": 4}, 'argument: unknown setting "bitwidth". Did you mean "bit_width"?'),
        ({"zzz": 4}, 'unknown setting "zzz".'),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_source_and_what_is_allowed(values, said):
    assert said in refusal(**values)


def test_all_bad_values_are_named_at_once():
    message = refusal(bit_width=3, seed="x")
    assert "bit_width = 3" in message
    assert "seed = 'x'" in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bit_width": 4, "group_size": 16}, "group_size = 16 needs scale_format = k"),
        ({"bit_width": 4, "group_size": 16, "scale_format": "k"}, "argument: group_size = 16 does not go with"),
        ({"bit_width": 4, "group_size": 128, "scale_format": "k"}, "bit_width 4 with group_size 32 or 64."),
        ({"bit_width": 8, "group_size": 64, "scale_format": "k"}, "argument: bit_width = 8 does not go with"),
        ({"bit_width": 2, "group_size": 16, "scale_format": "k", "method": "r2q"}, "use auto, uls or gptq."),
    ],
)
def test_scale_format_k_has_few_widths_and_groups(values, said):
    assert said in refusal(**values)


@pytest.mark.parametrize(
    ("profile", "given", "found"),
    [
        ("edge", {}, ("k", 16)), ("local", {}, ("k", 32)), ("cloud", {}, ("float16", 64)),
        ("edge", {"bit_width": 4}, ("k", 32)), ("local", {"bit_width": 2}, ("k", 16)),
        ("edge", {"bit_width": np.int64(8)}, ("float16", 32)), ("local", {"bit_width": 8}, ("float16", 64)),
        ("cloud", {"bit_width": 4}, ("float16", 64)),
        ("cloud", {"bit_width": 4, "scale_format": "k"}, ("k", 32)),
        ("cloud", {"bit_width": 2, "scale_format": "k"}, ("k", 16)),
        ("local", {"group_size": 64}, ("k", 64)), ("local", {"group_size": 128}, ("float16", 128)),
        ("edge", {"group_size": 64}, ("float16", 64)),
        ("local", {"scale_format": "float16"}, ("float16", 64)),
        ("edge", {"scale_format": "float16"}, ("float16", 32)),
        ("edge", {"method": "r2q"}, ("float16", 32)), ("local", {"method": "gptq"}, ("k", 32)),
        ("base_mode", {"method": "uls", "scale_format": "k"}, ("k", 32)),
    ],
)  # fmt: skip
def test_a_profiles_scales_give_way_to_what_the_user_says(profile, given, found):
    config = DiffusionQuantConfig.from_profile(profile, **given)
    assert (str(config.scale_format), config.group_size) == found
    for name in {"scale_format", "group_size"} - set(given):
        assert config.sources[name] == f"profile {profile}"
    again = DiffusionQuantConfig.from_profile(profile).replace(**given)
    assert again == config
    assert DiffusionQuantConfig.from_dict(config.to_dict()) == config


def test_scale_format_k_at_its_own_sizes():
    for bits, size in ((2, 16), (2, 32), (4, 32), (4, 64)):
        for method in ("auto", "uls", "gptq"):
            config = DiffusionQuantConfig(bit_width=bits, group_size=size, scale_format="k", method=method)
            assert (config.group_size, str(config.scale_format)) == (size, "k")


@pytest.mark.parametrize("flag", ["enable_spatial", "enable_time_aware"])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_strategys_second_parts_can_be_switched_in_every_profile(flag, profile):
    for wanted in (False, True):
        assert getattr(DiffusionQuantConfig.from_profile(profile, **{flag: wanted}), flag) is wanted


@pytest.mark.parametrize("bits", [1, 2, 3, 6, 16, 8.0, "8", True])
def test_activations_have_4_or_8_bits_or_stay_float(bits):
    assert DiffusionQuantConfig(activation_bit_width=4).activation_bit_width == 4
    assert DiffusionQuantConfig().activation_bit_width is None
    assert "it must be 4, 8 or none" in refusal(activation_bit_width=bits)


def test_descriptions_do_not_promise_what_is_not_done():
    facts = field_facts()
    assert "needs calibration" in facts["enable_spatial"]["description"]
    assert facts["seed"]["description"].startswith("Signs of a rotation")


def test_the_rooms_docstrings_name_its_files():
    import re
    from importlib import import_module, resources

    there = {entry.name for entry in resources.files("arrowquant_nb.config").iterdir()}
    for name in ("fields", "profiles", "settings", "sources"):
        module = import_module(f"arrowquant_nb.config.{name}")
        assert set(re.findall(r"\w+\.py\b", module.__doc__)) <= there, name


def test_a_profile_may_be_spelled_out():
    for profile in PROFILES:
        config = DiffusionQuantConfig.from_profile(profile)
        assert DiffusionQuantConfig(**config.to_dict()) == config
    assert DiffusionQuantConfig(enable_time_aware=False, num_time_groups=1).num_time_groups == 1


def test_a_form_offers_every_field():
    assert set(available_fields()) == set(TABLE)


def test_numpy_scalars_become_plain_values():
    given = {"bit_width": np.int8(2), "min_accuracy": np.float32(0.5), "fail_fast": np.True_, "seed": np.uint64(7)}
    config = DiffusionQuantConfig(**given)
    assert [type(getattr(config, name)) for name in given] == [int, float, bool, int]
    json.dumps(config.to_dict())


def test_settings_cannot_be_changed_afterwards():
    config = DiffusionQuantConfig(layer_bit_widths={"head": 16}, sensitive_layer_names=["a"])
    with pytest.raises((ArrowQuantError, ValueError)):
        config.bit_width = 2
    with pytest.raises(TypeError):
        config.layer_bit_widths["head"] = 2
    assert isinstance(config.sensitive_layer_names, tuple)


def test_the_callers_mapping_is_not_shared():
    widths = {"head": 16}
    config = DiffusionQuantConfig(layer_bit_widths=widths)
    widths["head"] = 3
    assert config.layer_bit_widths == {"head": 16}


def test_every_way_in_checks_values():
    for way_in in (
        lambda: DiffusionQuantConfig.model_validate({"bit_width": 3}),
        lambda: DiffusionQuantConfig.model_validate_json('{"bit_width": 3}'),
        lambda: DiffusionQuantConfig.from_dict({"bit_width": 3}),
        lambda: DiffusionQuantConfig().model_copy(update={"bit_width": 3}),
        lambda: DiffusionQuantConfig().replace(bit_width=3),
    ):
        with pytest.raises(ConfigurationError, match="bit_width = 3"):
            way_in()
    for nonsense in ([], None, {1: 2}):
        with pytest.raises(ConfigurationError, match="must be a mapping"):
            DiffusionQuantConfig.from_dict(nonsense)
    with pytest.raises(ConfigurationError, match="not JSON"):
        DiffusionQuantConfig.model_validate_json("[" * 100_000)


def test_copies_and_pickles_are_equal_and_keep_their_sources():
    config = DiffusionQuantConfig.from_profile(
        "edge", layer_bit_widths={"b": 8, "a": 16}, sensitive_layer_patterns=["x$"]
    )
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.model_copy()):
        assert twin == config
        assert hash(twin) == hash(config)
        assert twin.sources == config.sources
        assert list(twin.layer_bit_widths) == ["b", "a"]
    assert DiffusionQuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_equality_goes_by_values_not_by_sources():
    assert DiffusionQuantConfig(bit_width=4) == DiffusionQuantConfig()
    assert DiffusionQuantConfig(bit_width=8) != DiffusionQuantConfig()
    assert DiffusionQuantConfig() != {"bit_width": 4}


def test_the_content_hash_is_stable_and_sees_every_field():
    hashes = {DiffusionQuantConfig().content_hash(), DiffusionQuantConfig(seed=1).content_hash()}
    hashes |= {DiffusionQuantConfig(layer_bit_widths={"a": 8}).content_hash()}
    assert len(hashes) == 3
    # Stored in run records: a change of this value makes old records look different.
    assert DiffusionQuantConfig().content_hash() == DiffusionQuantConfig(bit_width=4).content_hash()


def test_a_new_profile_refills_what_the_old_one_had_filled_in():
    config = DiffusionQuantConfig(min_accuracy=0.5).replace(deployment_profile="edge")
    assert (config.bit_width, config.num_time_groups, config.min_accuracy) == (2, 5, 0.5)
    assert DiffusionQuantConfig().replace(bit_width=8).sources["group_size"] == "profile local"


def test_a_settings_file_named_like_a_profile_is_not_refilled(write):
    config = DiffusionQuantConfig.from_yaml(write("bit_width: 8\n", "profile mine.yaml"))
    assert config.replace(deployment_profile="edge").bit_width == 8


# --- joining sources ------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write_text(text, name="settings.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_text


def test_explicit_goes_before_environment_before_yaml_before_profile(write):
    path = write("bit_width: 8\ngroup_size: 128\nseed: 1\n")
    env = {"ARROW_QUANT_GROUP_SIZE": "256", "ARROW_QUANT_SEED": "2", "UNRELATED": "x"}
    config = DiffusionQuantConfig.load(yaml=path, env=env, seed=3)
    assert (config.bit_width, config.group_size, config.seed, config.min_accuracy) == (8, 256, 3, 0.98)
    assert config.sources["bit_width"] == "settings.yaml, line 1"
    assert config.sources["group_size"] == "environment variable ARROW_QUANT_GROUP_SIZE"
    assert config.sources["seed"] == "argument"
    assert config.sources["min_accuracy"] == "profile local"


def test_the_profile_is_looked_up_first_by_the_same_order(write):
    path = write("deployment_profile: cloud\nbit_width: 4\n")
    assert DiffusionQuantConfig.load(yaml=path, env={}).min_accuracy == 0.999
    env = {"ARROW_QUANT_DEPLOYMENT_PROFILE": "edge"}
    config = DiffusionQuantConfig.load(yaml=path, env=env)
    assert (config.min_accuracy, config.bit_width) == (0.90, 4)
    config = DiffusionQuantConfig.load(yaml=path, env=env, deployment_profile="base_mode")
    assert (config.method, config.group_size, config.deployment_profile) == ("rtn", 128, "local")


def test_only_load_reads_the_environment(monkeypatch, write):
    monkeypatch.setenv("ARROW_QUANT_BIT_WIDTH", "8")
    assert DiffusionQuantConfig().bit_width == 4
    assert DiffusionQuantConfig.from_profile("edge").bit_width == 2
    assert DiffusionQuantConfig.from_yaml(write("seed: 1\n")).bit_width == 4
    assert DiffusionQuantConfig.load().bit_width == 8


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("BIT_WIDTH", "8", "bit_width", 8),
        ("MIN_ACCURACY", ".5", "min_accuracy", 0.5),
        ("FAIL_FAST", "Yes", "fail_fast", True),
        ("ENABLE_SPATIAL", "0", "enable_spatial", False),
        ("MODALITY", "none", "modality", None),
        ("LAYER_BIT_WIDTHS", '{"head": 16, "blocks.*": 8}', "layer_bit_widths", {"head": 16, "blocks.*": 8}),
        ("LAYER_METHODS", '{"blocks.*": "mse"}', "layer_methods", {"blocks.*": "mse"}),
        ("SENSITIVE_LAYER_NAMES", '["a", "b"]', "sensitive_layer_names", ("a", "b")),
    ],
)
def test_environment_variables_are_text_of_the_fields_kind(variable, text, field, value):
    assert getattr(DiffusionQuantConfig.load(env={f"ARROW_QUANT_{variable}": text}), field) == value


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("ARROW_QUANT_BIT_WIDTH", "four", "variable ARROW_QUANT_BIT_WIDTH: bit_width = 'four' is refused; it must"),
        ("ARROW_QUANT_BIT_WIDTH", "", "ARROW_QUANT_BIT_WIDTH: bit_width = '' is refused"),
        ("ARROW_QUANT_SEED", "9" * 5000, "ARROW_QUANT_SEED: seed = '9999"),
        ("ARROW_QUANT_SENSITIVE_LAYER_NAMES", "head", "it must be a list of layer names"),
        ("ARROW_QUANT_LAYER_BIT_WIDTHS", '{"a": 4, "a": 8}', "ARROW_QUANT_LAYER_BIT_WIDTHS"),
        ("ARROW_QUANT_LAYER_BIT_WIDTHS", "[" * 100_000, "ARROW_QUANT_LAYER_BIT_WIDTHS"),
        ("ARROW_QUANT_BITWIDTH", "4", 'BITWIDTH names no setting; unset it. Did you mean "ARROW_QUANT_BIT_WIDTH"?'),
        ("ARROW_QUANT_bit_width", "4", 'Did you mean "ARROW_QUANT_BIT_WIDTH"?'),
        ("ARROW_QUANT_ACTIVATION_BIT_WIDTH", "6", "activation_bit_width = 6 is refused; it must be 4, 8 or none"),
    ],
)  # fmt: skip
def test_a_bad_variable_is_named(variable, text, said):
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig.load(env={variable: text})
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


# --- YAML -----------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
tricky = st.sampled_from(
    [
        "1e5",
        "0x1f",
        "010",
        "1:30",
        "no",
        "null",
        "~",
        "<<",
        "=",
        "a: b",
        "# x",
        "- x",
        "\x85",
        "\ufeff",
        "&a",
        "!t",
        " ",
    ]
)
configurations = st.fixed_dictionaries(
    {
        "deployment_profile": st.sampled_from(PROFILES),
        "bit_width": st.sampled_from([2, 4, 8]),
        "min_accuracy": st.floats(0, 1),
        "seed": st.integers(0, 2**63 - 1),
        "sensitive_layer_names": st.lists(names | tricky, max_size=3),
        "layer_bit_widths": st.dictionaries(names | tricky, st.sampled_from([2, 4, 8, 16]), max_size=3),
        "layer_methods": st.dictionaries(names | tricky, st.sampled_from(["auto", "mse", "r2q"]), max_size=3),
    }
).map(lambda values: DiffusionQuantConfig(**values))


@settings(max_examples=60)
@given(config=configurations)
def test_yaml_round_trips(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    text = config.to_yaml(path)
    twin = DiffusionQuantConfig.from_yaml(path)
    assert twin == config
    assert twin.to_yaml() == text
    assert list(twin.layer_bit_widths) == list(config.layer_bit_widths)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bit_width: 4\nbitwidth: 4\n", 'line 2: unknown setting "bitwidth". Did you mean "bit_width"?'),
        ("seed: 1\n\nbit_width: 3\n", "line 3: bit_width = 3 is refused; it must be 2, 4 or 8."),
        ("bit_width: '4'\n", "line 1: bit_width = '4' is refused"),
        ("fail_fast: yes\n", "line 1: fail_fast = 'yes' is refused; it must be true or false."),
        ("seed: 1\nseed: 2\n", "line 2: 'seed' is already set on line 1"),
        ("layer_bit_widths: {a: 4, a: 8}\n", "'a' is already set on line 1"),
        ("seed: !!python/object/apply:os.system ['true']\n", "line 1: tags are not read"),
        ("seed: !!int 4\n", "tags are not read"),
        ("a: &x [1]\nb: *x\n", "anchors (&) and aliases (*) are not read"),
        ("seed: *x\n", "aliases (*) are not read"),
        ("- bit_width\n", "line 1: a settings file is a mapping"),
        ("just text\n", "a settings file is a mapping"),
        ("? [a]\n: 1\n", "a key must be a word"),
        ("seed: 1\n---\nseed: 2\n", "line 2"),
        ("seed: [1\n", "line 2"),
        ("\tseed: 1\n", "line 1"),
        ("seed: \x00\n", "line 1: contains the control character"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        ("seed: 1:30\n", "seed = '1:30' is refused"),
        ("seed: 2020-13-45\n", "seed = '2020-13-45' is refused"),
        ("<<: {seed: 1}\n", 'unknown setting "<<"'),
        ("activation_bit_width: 6\n", "line 1: activation_bit_width = 6 is refused"),
        ("bit_width: 8\nscale_format: k\n", "line 1: bit_width = 8 does not go with scale_format = k"),
    ],
)
def test_a_bad_file_is_named_with_its_line(write, text, said):
    path = write(text)
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig.from_yaml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_numbers_are_decimal_as_written(write):
    config = DiffusionQuantConfig.from_yaml(write("seed: 010\nmin_accuracy: 9e-1\n"))
    assert (config.seed, config.min_accuracy) == (10, 0.9)


def test_an_empty_file_is_the_default(write):
    assert DiffusionQuantConfig.from_yaml(write("# nothing set\n")) == DiffusionQuantConfig()


@pytest.mark.parametrize("start", ["seed: " + "[" * 5000, "seed: " + "{a: " * 5000, "- " * 5000 + "1", "? " * 5000])
def test_deep_nesting_ends_in_an_error_not_a_crash(write, start):
    path = write(start)
    with pytest.raises(ConfigurationError, match="line 1: nested more than 32 deep"):
        DiffusionQuantConfig.from_yaml(path)


def test_exactly_thirty_two_levels_are_read(write):
    shallow = write("seed: " + "[" * 30 + "1" + "]" * 30)
    with pytest.raises(ConfigurationError, match="seed = "):
        DiffusionQuantConfig.from_yaml(shallow)
    deep = write("seed: " + "[" * 31 + "1" + "]" * 31)
    with pytest.raises(ConfigurationError, match="nested more than 32 deep"):
        DiffusionQuantConfig.from_yaml(deep)


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match="larger than 1 MiB"):
        DiffusionQuantConfig.from_yaml(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("filler", ["a: 1\n", "[", "'", "1:", "x", "#\n"])
def test_the_largest_allowed_file_ends_in_bounded_time(write, filler):
    path = write((filler * (1 << 20))[: 1 << 20])
    started = time.monotonic()
    with contextlib.suppress(ConfigurationError):
        DiffusionQuantConfig.from_yaml(path)
    # Linear work: seconds on a loaded machine. Anything quadratic would take hours.
    assert time.monotonic() - started < 120


def test_an_alias_bomb_is_refused(write):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(ConfigurationError, match="line 1: anchors"):
        DiffusionQuantConfig.from_yaml(write("\n".join(lines)))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigurationError, match="there is no settings file here"):
            DiffusionQuantConfig.from_yaml(path)


@pytest.mark.parametrize("name", ["x" * 300, "nul\0.yaml", "file/below.yaml"])
def test_impossible_paths_are_errors_of_ours(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"yaml|xxx"):
        DiffusionQuantConfig.from_yaml(tmp_path / name)
    with pytest.raises(OutputError, match="cannot write the settings"):
        DiffusionQuantConfig().to_yaml(tmp_path / name)


def test_an_unwritable_file_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write the settings"):
        DiffusionQuantConfig().to_yaml(tmp_path / "no" / "such" / "folder.yaml")


def test_the_written_file_is_plain_yaml_for_others_too():
    config = DiffusionQuantConfig(layer_bit_widths={"a.*": 8})
    assert yaml.safe_load(config.to_yaml()) == config.to_dict()


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_settings_or_our_own_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.yaml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigurationError):
        assert DiffusionQuantConfig.from_yaml(path).content_hash()
