"""The `arrowquant` command: what it prints where, its exit codes, and that every setting is an option."""

import contextlib
import errno
import json
import os
import pty
import subprocess
import sys
import termios

import click
import pytest
from click.testing import CliRunner

from arrowquant_nb import samples
from arrowquant_nb.cli.commands import main
from arrowquant_nb.cli.group import Commands
from arrowquant_nb.config import DiffusionQuantConfig, available_fields

QUICK = ("--calibration-samples", 4)
"""Calibration of a sample in about two seconds."""


def run(*arguments, env=None, code=0):
    done = CliRunner().invoke(main, [str(a) for a in arguments], env=env)
    assert done.exit_code == code, done.output + repr(done.exception)
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    done = run("quantize", "digits-dit", folder, "--json", *QUICK)
    assert done.stderr == ""
    assert json.loads(done.stdout)["quantized_path"] == str(folder)
    return folder


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_explains_itself(command):
    assert command in run("--help").stdout
    assert "--json" in run(command, "--help").stdout
    assert "\\b" not in run(command, "--help").stdout  # an example keeps its lines


def test_every_available_setting_is_an_option_with_its_range_and_profiles():
    text = " ".join(run("quantize", "--help").stdout.split())
    for name in available_fields():
        assert f"--{name.replace('_', '-')}" in text
    assert "(bits; 2, 4 or 8). [edge 2, local 4, cloud 8]" in text


def test_export_prints_a_table_and_says_on_stderr_what_was_rounded(model, tmp_path):
    done = run("export", model, tmp_path / "floats", "--to", "safetensors")
    assert done.stdout.startswith(f"safetensors: {tmp_path / 'floats'}, ")
    assert "rounded to float16" in done.stderr
    assert run("export", model, tmp_path / "quiet", "--to", "safetensors", "--quiet").stderr == ""
    again = run("export", model, tmp_path / "floats", "--to", "safetensors", code=1)
    assert "--overwrite" in again.stderr
    done = run("export", model, tmp_path / "floats", "--to", "diffusers", "--overwrite", "--json")
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert (report["target"], report["warnings"]) == ("diffusers", [])
    assert (
        "there are: safetensors, diffusers, gguf" in run("export", model, tmp_path / "x", "--to", "onnx", code=1).stderr
    )


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
        "--layer-bit-width", "proj_out_2.weight=8", "--layer-bit-width", "a=b=16", "--layer-method", "*.ff.*=mse",
        "--sensitive-layer-name", "x",
        "--sensitive-layer-pattern", "q$", "--profile", "base_mode", "--modality", "none",
    )["config"]  # fmt: skip
    assert shown["layer_bit_widths"] == {"proj_out_2.weight": 8, "a=b": 16}
    assert shown["layer_methods"] == {"*.ff.*": "mse"}
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
        (
            ["--scale-format", "q"],
            1,
            "option --scale-format: scale_format = 'q' is refused; it must be float16 or k.",
        ),
        (["--method", "r2q"], 1, "method r2q exists at 2 bits only, not at 4: set bit_width=2"),
        (["--layer-bit-width", "x"], 2, "'x' is not NAME=BITS"),
        (["--layer-bit-width", "x=4", "--layer-bit-width", "x=8"], 2, "'x' is given twice"),
        (["--layer-bit-width", "x=5"], 1, "layer_bit_widths['x'] = 5 is refused"),
        (["--layer-method", "x"], 2, "'x' is not NAME=METHOD"),
        (["--layer-method", "x=best"], 1, "layer_methods['x'] = 'best' is refused"),
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
    plan = json.loads(run("plan", "digits-dit", "--json", "--no-forecast").stdout)
    assert plan["model"] == "digits-dit"
    assert "forecast" not in plan
    assert json.loads(run("inspect", "digits-dit", "--json").stdout)["kind"] == "diffusers_component"
    assert json.loads(run("inspect", model, "--json").stdout)["kind"] == "quantized"
    assert json.loads(run("dequantize", model, tmp_path / "back", "--json").stdout)["path"] == str(tmp_path / "back")
    assert json.loads(run("info", "--json").stdout)["isa"]


def test_inspect_lists_what_lies_in_the_folder(model):
    before, after = run("inspect", "digits-dit").stdout, run("inspect", model).stdout
    names = [line.split()[0] for line in before.splitlines() if ".weight" in line]
    assert names
    assert all(name in after for name in names)
    assert "INT4 gptq-uls k g32" in after
    assert "INT8 gptq-uls g64" in after


def test_validate_passes_the_model_and_fails_another(model, tmp_path):
    assert "passed" in run("validate", "digits-dit", model).stdout
    from safetensors.numpy import load_file, save_file

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


def pipeline_of(folder, component, variant):
    """Make a pipeline of a checkpoint, its weights also under a variant's name with one tensor less."""
    from safetensors.numpy import load_file, save_file

    place = folder / component
    place.mkdir(parents=True)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "DiTPipeline", component: ["diffusers", "DiTTransformer2DModel"]})
    )
    (weights,) = samples.load("digits-dit").glob("*.safetensors")
    arrays = load_file(weights)
    save_file(arrays, place / "diffusion_pytorch_model.safetensors")
    arrays.pop("proj_out_2.bias")
    save_file(arrays, place / f"diffusion_pytorch_model.{variant}.safetensors")
    (place / "config.json").write_bytes((samples.load("digits-dit") / "config.json").read_bytes())
    return folder


def test_a_plan_says_what_the_run_will_lose():
    plan = json.loads(run("plan", "docs-mlm", *QUICK, "--json").stdout)
    network = plan["forecast"]["network_sqnr_db"]
    assert network["low"] < network["value"] < network["high"]
    text = run("plan", "docs-mlm", *QUICK).stdout
    assert f"{network['value']:.1f} ({network['low']:.1f} to {network['high']:.1f}) dB" in text


def test_component_and_variant_choose_what_is_read(tmp_path):
    pipeline = pipeline_of(tmp_path / "pipeline", "transformer", "fp16")
    choice = ["--component", "transformer", "--variant", "fp16"]
    for command in (["inspect"], ["plan", "--modality", "image"]):
        rows = [run(*command, pipeline, "--json", *options).stdout for options in ([], choice)]
        assert ["proj_out_2.bias" in text for text in rows] == [True, False]
    done = run("quantize", pipeline, tmp_path / "model", "--modality", "image", "--json", *choice)
    assert "proj_out_2.bias" not in done.stdout
    record = json.loads((tmp_path / "model" / "run.json").read_text())
    assert (record["component"], record["variant"]) == ("transformer", "fp16")


@pytest.mark.parametrize("command", [["inspect"], ["plan"], ["quantize", "--overwrite"]])
@pytest.mark.parametrize(("option", "value"), [("--component", "nosuch"), ("--variant", "fp17")])
def test_an_absent_component_or_variant_is_named(tmp_path, command, option, value):
    pipeline = pipeline_of(tmp_path / "pipeline", "transformer", "fp16")
    output = [tmp_path / "model"] if command[0] == "quantize" else []
    assert value in run(*command, pipeline, *output, option, value, code=1).stderr


def test_a_quantized_folder_has_no_components_to_choose(model):
    for option in ("--component", "--variant"):
        assert "leave out" in run("inspect", model, option, "transformer", code=1).stderr


def test_a_quantized_model_is_quantized_again_only_when_asked_for(model, tmp_path):
    for command in (["plan", model], ["quantize", model, tmp_path / "again"]):
        assert "--requantize" in run(*command, code=1).stderr
        assert json.loads(run(*command, "--requantize", "--bit-width", 8, "--json").stdout)["bit_width"] == 8


def test_a_finished_model_of_another_source_is_replaced_only_when_asked_for(models, tmp_path):
    run("quantize", "digits-dit", tmp_path / "model", "--quiet", *QUICK)
    run(
        "quantize", "digits-dit", tmp_path / "model", "--quiet", "--bit-width", 8, *QUICK
    )  # the same source, other settings
    before = (tmp_path / "model" / "manifest.json").read_bytes()
    assert "overwrite" in run("quantize", models.dit, tmp_path / "model", code=1).stderr
    assert (tmp_path / "model" / "manifest.json").read_bytes() == before
    run("quantize", models.dit, tmp_path / "model", "--quiet", "--overwrite")
    assert "transformer_blocks.1.conv.weight" in run("inspect", tmp_path / "model").stdout


def test_layers_that_fell_back_are_counted_on_stderr(tmp_path):
    arguments = ["quantize", "digits-dit", "--profile", "edge", "--min-output-sqnr-db", 20, *QUICK]
    done = run(*arguments, tmp_path / "a")
    said = [line for line in done.stderr.splitlines() if "fell back to more bits" in line]
    result = json.loads(run(*arguments, tmp_path / "b", "--json").stdout)
    n_layers = sum(
        layer["action"] == "quantized" and layer["bit_width"] > layer["requested_bit_width"]
        for layer in result["layers"]
    )
    assert n_layers > 1
    assert said == [f"{n_layers} layers missed the quality gate and fell back to more bits"]
    assert run(*arguments, tmp_path / "c", "--quiet").stderr == ""
    assert "fell back" not in run("quantize", "digits-dit", tmp_path / "d", "--profile", "cloud", *QUICK).stderr


def on_terminal(*arguments):
    """Run the command with stderr on a terminal; return what it drew there."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    command = [sys.executable, "-m", "arrowquant_nb", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        drawn = b""
        # Linux ends the stream of a terminal that nobody holds open any more with EIO.
        with contextlib.suppress(OSError):
            while part := os.read(leader, 4096):
                drawn += part
    os.close(leader)
    assert process.returncode == 0, drawn.decode()
    return drawn.decode()


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "digits-dit", "OUTPUT", *QUICK],
        ["validate", "digits-dit", "MODEL"],
        ["dequantize", "MODEL", "OUTPUT"],
        ["reproduce", "MODEL"],
    ],
    ids=lambda command: command[0],
)
def test_every_long_command_draws_a_bar_to_its_end_unless_quiet(command, model, tmp_path):
    places = {"MODEL": model, "OUTPUT": tmp_path / "drawn"}
    drawn = on_terminal(*(places.get(word, word) for word in command))
    assert "  0%|" in drawn
    assert "100%|" in drawn
    places["OUTPUT"] = tmp_path / "quiet"
    assert on_terminal(*(places.get(word, word) for word in command), "--quiet") == ""


def test_an_interrupt_says_how_to_resume():
    group = Commands("arrowquant")

    @group.command()
    def stop():
        raise KeyboardInterrupt

    done = CliRunner().invoke(group, ["stop"])
    assert done.exit_code == 130
    assert "run the same command again to resume" in done.stderr


def test_a_file_that_may_not_be_read_is_named():
    group = Commands("arrowquant")

    @group.command()
    def read():
        raise PermissionError(errno.EACCES, "Permission denied", "secret/config.json")

    done = CliRunner().invoke(group, ["read"])
    assert (done.exit_code, done.stderr) == (1, "Error: secret/config.json: Permission denied\n")


def test_other_failures_are_not_hidden():
    group = Commands("arrowquant")

    @group.command()
    def broken():
        raise ZeroDivisionError

    @group.command()
    def no_file():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    assert isinstance(CliRunner().invoke(group, ["broken"]).exception, ZeroDivisionError)
    assert isinstance(CliRunner().invoke(group, ["no-file"]).exception, OSError)
    assert isinstance(group, click.Group)


@pytest.mark.parametrize("odd", ["x" * 300, "file/below"])
@pytest.mark.parametrize("command", ["plan", "inspect", "quantize", "validate", "dequantize", "reproduce", "run"])
def test_impossible_paths_end_in_a_message(command, odd, model, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / odd
    calls = {
        "quantize": [[path, tmp_path / "out"], ["digits-dit", path]],
        "validate": [[path, model], ["digits-dit", path]],
        "dequantize": [[path, tmp_path / "out"], [model, path]],
        "reproduce": [[path], [model, "--output", path]],
        "run": [[path, tmp_path / "out.ipynb"], [f"{path}.ipynb"]],
    }
    for arguments in calls.get(command, [[path]]):
        done = run(command, *arguments, code=1)
        assert done.stderr.startswith("Error: ")
    if command in ("plan", "quantize"):
        places = ["digits-dit", tmp_path / "out"][: 2 if command == "quantize" else 1]
        said = run(command, *places, "--config", path, code=1).stderr
        assert "there is no settings file here" in said or "cannot be read" in said


@pytest.mark.parametrize("arguments", [["info"], ["plan", "digits-dit"], ["inspect", "digits-dit"]])
def test_an_unknown_instruction_set_is_a_message_not_a_traceback(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "arrowquant_nb", *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"ARROWQUANT_NB_ISA": "foo"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ARROWQUANT_NB_ISA='foo' is unknown: use one of ")
    assert len(done.stderr.splitlines()) == 1


def test_help_and_version_work_whatever_the_environment_says():
    for option in ("--help", "--version"):
        command = [sys.executable, "-m", "arrowquant_nb", option]
        env = os.environ | {"ARROWQUANT_NB_ISA": "foo"}
        assert subprocess.run(command, capture_output=True, text=True, check=True, env=env).stderr == ""


def test_run_without_output_or_with_too_many_paths_is_a_usage_error():
    assert "OUTPUT.ipynb" in run("run", code=2).stderr
    assert "at most two" in run("run", "a", "b", "c", code=2).stderr


def test_python_dash_m_is_the_same_command():
    command = [sys.executable, "-m", "arrowquant_nb", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("arrowquant_nb ")
