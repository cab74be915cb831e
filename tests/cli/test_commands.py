"""The `arrowquant` command: what it prints where, its exit codes, and that every setting is an option."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from arrowquant_nb.cli.commands import _Commands, main
from arrowquant_nb.config import DiffusionQuantConfig, available_fields


def run(*arguments, env=None, code=0):
    done = CliRunner().invoke(main, [str(a) for a in arguments], env=env)
    assert done.exit_code == code, done.output + repr(done.exception)
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    done = run("quantize", "digits-dit", folder, "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["quantized_path"] == str(folder)
    return folder


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_explains_itself(command):
    assert command in run("--help").stdout
    assert "--json" in run(command, "--help").stdout


def test_every_available_setting_is_an_option_with_its_range_and_profiles():
    text = " ".join(run("quantize", "--help").stdout.split())
    for name in available_fields():
        assert f"--{name.replace('_', '-')}" in text
    assert "(bits; 2, 4 or 8). [edge 2, local 4, cloud 8]" in text
    for unbuilt in ("--rotation", "--low-rank", "--target-model-size-mb", "gptq", "hadamard"):
        assert unbuilt not in text


def config_of(*options, env=None):
    return json.loads(run("plan", "digits-dit", "--show-config", "--json", *options, env=env).stdout)


def test_options_go_before_environment_before_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("deployment_profile: edge\nseed: 1\nmin_accuracy: 0.5\n")
    env = {"ARROW_QUANT_SEED": "2", "ARROW_QUANT_MIN_ACCURACY": "0.6"}
    shown = config_of("--config", path, "--seed", 3, "--no-gain-correction", env=env)
    assert (
        shown["config"]
        == DiffusionQuantConfig.from_profile("edge", seed=3, min_accuracy=0.6, gain_correction=False).to_dict()
    )
    sources = shown["sources"]
    assert sources["seed"] == "option --seed"
    assert sources["min_accuracy"] == "environment variable ARROW_QUANT_MIN_ACCURACY"
    assert sources["deployment_profile"] == "c.yaml, line 1"
    assert sources["bit_width"] == "profile edge"


def test_lists_and_tables_are_repeated_options():
    shown = config_of(
        "--layer-bit-width", "proj_out_2.weight=8", "--layer-bit-width", "a=b=16", "--sensitive-layer-name", "x",
        "--sensitive-layer-pattern", "q$", "--profile", "base_mode", "--modality", "none",
    )["config"]  # fmt: skip
    assert shown["layer_bit_widths"] == {"proj_out_2.weight": 8, "a=b": 16}
    assert (shown["sensitive_layer_names"], shown["sensitive_layer_patterns"]) == (["x"], ["q$"])
    assert (shown["method"], shown["modality"]) == ("rtn", None)


def test_show_config_names_the_source_of_every_setting():
    lines = run("plan", "digits-dit", "--show-config", "--bit-width", 8).stdout.splitlines()
    assert ["bit_width", "8", "bits", "option", "--bit-width"] in [line.split() for line in lines]
    assert ["fail_fast", "false", "profile", "local"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--bit-width", "3"], 1, "option --bit-width: bit_width = 3 is refused; it must be 2, 4 or 8."),
        (["--bit-width", "four"], 1, "bit_width = 'four' is refused"),
        (["--profile", "edgy"], 1, "option --profile: deployment_profile = 'edgy' is refused"),
        (["--rotation", "auto"], 1, "option --rotation: rotation = 'auto' is not available yet; available: none"),
        (["--method", "gptq"], 1, "method = 'gptq' is not available yet"),
        (["--layer-bit-width", "x"], 2, "'x' is not NAME=BITS"),
        (["--layer-bit-width", "x=4", "--layer-bit-width", "x=8"], 2, "'x' is given twice"),
        (["--layer-bit-width", "x=5"], 1, "layer_bit_widths['x'] = 5 is refused"),
        (["--layer-bit-width", "nowhere*=4"], 1, "nowhere*"),
        (["--sensitive-layer-pattern", "("], 1, "not a regular expression"),
        (["--config", "absent.yaml"], 1, "absent.yaml: there is no settings file here"),
        (["--bitwidth", "4"], 2, "--bit-width"),
    ],
)
def test_a_bad_option_ends_with_a_message_that_names_it(options, code, said):
    done = run("plan", "digits-dit", *options, code=code)
    assert said in done.stderr
    assert done.stdout == ""


def test_a_missing_model_is_named(tmp_path):
    for command in (["plan"], ["inspect"], ["validate", "digits-dit"], ["reproduce"]):
        done = run(*command, tmp_path / "absent", code=1)
        assert "absent" in done.stderr
        assert done.stdout == ""


def test_json_is_all_that_stands_on_stdout(model, tmp_path):
    assert json.loads(run("plan", "digits-dit", "--json").stdout)["model"] == "digits-dit"
    assert json.loads(run("inspect", "digits-dit", "--json").stdout)["kind"] == "diffusers_component"
    assert json.loads(run("inspect", model, "--json").stdout)["kind"] == "quantized"
    assert json.loads(run("dequantize", model, tmp_path / "back", "--json").stdout)["path"] == str(tmp_path / "back")
    assert json.loads(run("info", "--json").stdout)["isa"]


def test_inspect_lists_what_lies_in_the_folder(model):
    before, after = run("inspect", "digits-dit").stdout, run("inspect", model).stdout
    names = [line.split()[0] for line in before.splitlines() if ".weight" in line]
    assert names
    assert all(name in after for name in names)
    assert "INT4 uls g64" in after
    assert "INT8 uls g64" in after


def test_validate_passes_the_model_and_fails_another(model, tmp_path):
    assert "passed" in run("validate", "digits-dit", model).stdout
    from safetensors.numpy import load_file, save_file

    from arrowquant_nb import samples

    other = tmp_path / "other"
    other.mkdir()
    source = samples.load("digits-dit")
    for name in ("config.json", "metadata.json"):
        (other / name).write_bytes((source / name).read_bytes())
    (weights,) = source.glob("*.safetensors")
    arrays = load_file(weights)
    arrays["transformer_blocks.0.attn1.to_q.weight"] = -arrays["transformer_blocks.0.attn1.to_q.weight"]
    save_file(arrays, other / weights.name)
    done = run("validate", other, model, code=1)
    assert "transformer_blocks.0.attn1.to_q.weight" in done.stdout


def test_reproduce_says_which_files_are_identical(model):
    report = json.loads(run("reproduce", model, "--json").stdout)
    assert report["identical"]
    assert (report["different"], report["missing"], report["extra"]) == ([], [], [])


def test_a_damaged_model_is_refused_with_exit_code_one(model, tmp_path):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    manifest = damaged / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert "manifest.json" in run("inspect", damaged, code=1).stderr


def test_an_interrupt_says_how_to_resume():
    group = _Commands("arrowquant")

    @group.command()
    def stop():
        raise KeyboardInterrupt

    done = CliRunner().invoke(group, ["stop"])
    assert done.exit_code == 130
    assert "run the same command again to resume" in done.stderr


def test_other_failures_are_not_hidden():
    group = _Commands("arrowquant")

    @group.command()
    def broken():
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(group, ["broken"]).exception, ZeroDivisionError)
    assert isinstance(group, click.Group)


def test_run_without_output_or_with_too_many_paths_is_a_usage_error():
    assert "OUTPUT.ipynb" in run("run", code=2).stderr
    assert "at most two" in run("run", "a", "b", "c", code=2).stderr


def test_python_dash_m_is_the_same_command():
    command = [sys.executable, "-m", "arrowquant_nb", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("arrowquant_nb ")
