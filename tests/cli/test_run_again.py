"""The command that a finished run shows is the whole run: read by the command line, it gives the same settings."""

import html
import json
import re
import shlex
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import arrowquant_nb as aq
from arrowquant_nb import result_card, samples
from arrowquant_nb.cli.commands import main
from arrowquant_nb.config.command import option_words
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.runs.recorded import read_result

words = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=8) | st.sampled_from(
    ["-x", "--seed", "a=b", "=", "it's", "$HOME", "*.ff.*", "\u00e9"]
)
fields = {
    "deployment_profile": st.sampled_from(["edge", "local", "cloud", "base_mode"]),
    "bit_width": st.sampled_from([2, 4, 8]),
    "scale_format": st.sampled_from(["k", "float16"]),
    "group_size": st.sampled_from([16, 32, 64, 128]),
    "method": st.sampled_from(["auto", "uls", "mse", "gptq"]),
    "modality": st.sampled_from([None, "image", "code"]),
    "min_accuracy": st.floats(0, 1),
    "activation_bit_width": st.sampled_from([None, 4, 8]),
    "target_model_size_mb": st.none() | st.floats(0.001, 1e6),
    "num_threads": st.integers(0, 64),
    "seed": st.integers(0, 2**63 - 1),
    "gain_correction": st.booleans(),
    "fail_fast": st.booleans(),
    "sensitive_layer_names": st.lists(words, max_size=3),
    "layer_bit_widths": st.dictionaries(words, st.sampled_from([2, 4, 8, 16]), max_size=3),
    "layer_methods": st.dictionaries(words, st.sampled_from(["auto", "mse", "r2q"]), max_size=3),
}


def invoke(*arguments):
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@settings(max_examples=80)
@given(values=st.fixed_dictionaries({}, optional=fields))
def test_any_settings_are_read_back_from_their_options(values):
    try:
        config = aq.DiffusionQuantConfig(**values)
    except ConfigurationError:
        return
    shown = json.loads(invoke("plan", "digits-dit", "--show-config", "--json", *option_words(config)))
    assert shown["config"] == config.to_dict() | {"num_threads": 0}


def test_scales_that_the_profile_would_fill_in_otherwise_are_said():
    config = aq.DiffusionQuantConfig(scale_format="float16", group_size=32)  # 32 is the profile's, for scale format k
    assert option_words(config) == ["--profile", "local", "--scale-format", "float16", "--group-size", "32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pipeline of two components and variants, and a calibration file."""
    place = tmp_path_factory.mktemp("beside")
    (weights,) = samples.load("digits-dit").glob("*.safetensors")
    arrays = load_file(weights)
    for component in ("transformer", "transformer_2"):
        folder = place / "my pipe" / component
        folder.mkdir(parents=True)
        shutil.copy(samples.load("digits-dit") / "config.json", folder)
        save_file(arrays, folder / "diffusion_pytorch_model.safetensors")
        save_file(
            {name: array * 2 for name, array in arrays.items()}, folder / "diffusion_pytorch_model.fp16.safetensors"
        )
    part = ["diffusers", "DiTTransformer2DModel"]
    index = {"_class_name": "DiTPipeline", "transformer": part, "transformer_2": part}
    (place / "my pipe" / "model_index.json").write_text(json.dumps(index))
    invoke("calibrate", "digits-dit", place / "it's.parquet", "--samples", 4)
    return place


def shown(card):
    """Return the command that stands on a card."""
    lines = html.unescape(re.sub(r"<[^>]+>", "\n", card)).splitlines()
    return next(line for line in lines[lines.index("Run again") + 1 :] if line)


def run_shown(command, place, monkeypatch):
    monkeypatch.chdir(place)
    program, *arguments = shlex.split(command)
    assert program == "arrowquant"
    invoke(*arguments, "--quiet")
    return place / "OUTPUT"


def record(folder):
    read = json.loads((folder / "run.json").read_text())
    return {name: read[name] for name in ("model", "component", "variant", "config", "inputs")} | {
        "calibration": read["calibration"]["given"]
    }


def test_the_card_of_a_run_shows_component_variant_and_calibration(place, tmp_path, monkeypatch):
    config = aq.DiffusionQuantConfig(modality="image", bit_width=8, seed=5, layer_bit_widths={"proj_out_2.weight": 16})
    result = aq.ArrowQuantV2(config).quantize_diffusion_model(
        place / "my pipe", tmp_path / "first", component="transformer_2", variant="fp16",
        calibration=place / "it's.parquet",
    )  # fmt: skip
    command = shown(result._repr_html_())
    assert str(place) not in command
    second = run_shown(command, place, monkeypatch)
    assert record(second) == record(tmp_path / "first")
    for name in ("manifest.json", "README.md"):
        assert (second / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert command in (second / "README.md").read_text()
    assert shown(read_result(second)._repr_html_()) == command
    assert result_card.command(aq.QuantizationResult.from_dict(result.to_dict())) == command


def test_a_run_without_calibration_and_one_over_a_quantized_model_say_so(place, tmp_path, monkeypatch):
    config = aq.DiffusionQuantConfig(modality="image")
    quantizer = aq.ArrowQuantV2(config)
    first = quantizer.quantize_diffusion_model(
        place / "my pipe", tmp_path / "-int4", variant="fp16", calibration="none"
    )
    assert "--component transformer --variant fp16 --calibration none --profile local" in result_card.command(first)
    again = quantizer.quantize_diffusion_model(tmp_path / "-int4", tmp_path / "again", requantize=True)
    command = result_card.command(again)
    assert command.startswith("arrowquant quantize ./-int4 OUTPUT --requantize --profile local")
    assert record(run_shown(command, tmp_path, monkeypatch)) == record(tmp_path / "again")


def test_a_folder_that_is_called_like_a_sample_is_told_apart(tmp_path, monkeypatch):
    shutil.copytree(samples.load("digits-dit"), tmp_path / "digits-dit")
    result = aq.ArrowQuantV2().quantize_diffusion_model(tmp_path / "digits-dit", tmp_path / "first")
    assert record(run_shown(result_card.command(result), tmp_path, monkeypatch)) == record(tmp_path / "first")
