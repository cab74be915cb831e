"""The backend of diffusers and transformers: folders load, compute what their floats compute, and are saved again."""

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

import tiny_torch  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from diffusers.hooks import apply_group_offloading  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import arrowquant_nb as aq  # noqa: E402
from arrowquant_nb import (  # noqa: E402
    CheckpointError,
    ConfigurationError,
    DiffusionQuantConfig,
    MetadataError,
    ModelNotFoundError,
    ShapeMismatchError,
    samples,
)
from arrowquant_nb.cli import main  # noqa: E402
from arrowquant_nb.diffusers import (  # noqa: E402
    ArrowQuantConfig,
    PixelDiTPipeline,
    load_sample,
    quantize_pipeline,
    through_torch,
)
from arrowquant_nb.diffusers.libraries import NEEDED, unfit  # noqa: E402
from arrowquant_nb.runtime import QuantizedConv2d, QuantizedEmbedding, QuantizedLinear, current_time  # noqa: E402
from arrowquant_nb.time_reading import TimeReading  # noqa: E402
from arrowquant_nb.ui.report import report_html  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
WEIGHTS = "diffusion_pytorch_model.safetensors"
RTN = DiffusionQuantConfig(bit_width=4, method="rtn")


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def language_model():
    """A masked language model whose vocabulary is large enough to be quantized, tied to the output layer."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=400, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).eval()


class Folders:
    """Models saved, quantized and exported, each made once."""

    def __init__(self, root):
        self._root = root

    def of(self, name):
        """Return the folders of the float model, of the master copy and of the export."""
        paths = [self._root / f"{name}-{kind}" for kind in ("float", "master", "exported")]
        if not paths[2].exists():
            model = language_model() if name == "BERT" else tiny_torch.seeded(name)[0]
            model.save_pretrained(paths[0])
            aq.ArrowQuantV2(RTN).quantize_diffusion_model(paths[0], paths[1], calibration="none")
            aq.export_model(paths[1], "diffusers", paths[2])
        return paths


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def exported(folders, tmp_path):
    """A copy of the exported DiT that a test may damage."""
    return shutil.copytree(folders.of("DiT")[2], tmp_path / "damaged")


def output_of(model, call, seed=5):
    torch.manual_seed(seed)
    with torch.no_grad():
        found = model(**call)
    return found.logits if hasattr(found, "logits") else found.sample


@pytest.mark.parametrize("name", ["DiT", "UNet", "Flux", "Wan", "StableAudio"])
def test_a_folder_loads_with_its_class_computes_its_floats_and_round_trips(name, folders, tmp_path):
    source, master, exported = folders.of(name)
    float_model, call = tiny_torch.seeded(name)
    kind = type(float_model)
    loaded, info = kind.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values())
    swapped = [m for m in loaded.modules() if isinstance(m, (QuantizedLinear, QuantizedConv2d))]
    assert len(swapped) == sum(not aq.open_quantized(master)[n].kept for n in aq.open_quantized(master))
    float_model.load_state_dict(aq.dequantize_state_dict(master))
    torch.manual_seed(3)
    inputs = call(500)
    expected = output_of(float_model, inputs)
    torch.testing.assert_close(output_of(loaded, inputs), expected, rtol=1e-4, atol=1e-5)
    loaded.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == json.loads((exported / "config.json").read_text())["quantization_config"]
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(output_of(again, inputs), output_of(loaded, inputs))
    assert source.is_dir()


def test_a_language_model_is_quantized_in_place_and_saved(tmp_path):
    model = language_model()
    texts = np.random.default_rng(0).integers(5, 400, (4, 16))
    config = DiffusionQuantConfig(bit_width=4, modality="text")
    report = quantize_pipeline(model, config, texts, 4, mask_token_id=4)
    assert str(report).startswith("model: 3 of ")
    model.save_pretrained(tmp_path)
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    call = {"input_ids": torch.arange(5, 25)[None]}
    assert torch.equal(output_of(again, call), output_of(model, call))
    assert isinstance(again.bert.encoder.layer[0].output.dense, QuantizedLinear)


def test_a_language_model_loads_with_its_class_and_stays_tied(folders, tmp_path):
    _, master, exported = folders.of("BERT")
    loaded = transformers.BertForMaskedLM.from_pretrained(exported)
    assert isinstance(loaded.bert.encoder.layer[0].intermediate.dense, QuantizedLinear)
    assert isinstance(loaded.bert.embeddings.word_embeddings, QuantizedEmbedding)
    assert isinstance(loaded.cls.predictions.decoder, QuantizedLinear)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    float_model = language_model()
    float_model.load_state_dict(aq.dequantize_state_dict(master), strict=False)
    call = {"input_ids": torch.arange(5, 25)[None]}
    torch.testing.assert_close(output_of(loaded, call), output_of(float_model, call), rtol=1e-4, atol=1e-5)
    loaded.save_pretrained(tmp_path)
    stored, first = (json.loads((f / "config.json").read_text()) for f in (tmp_path, exported))
    assert stored["quantization_config"] == first["quantization_config"]
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(exported / "model.safetensors").keys()
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.bert.encoder.layer[0].intermediate.dense.weight.scales.dtype == torch.float16
    assert (output_of(again, call).float() - output_of(loaded, call)).abs().max() < 0.05


def test_a_vocabulary_that_a_model_scales_is_decoded_once_for_all_its_readers(tmp_path):
    """BART looks words up in a subclass that multiplies them: no quantized layer stands for that."""
    config = transformers.BartConfig(
        vocab_size=700, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, scale_embedding=True,
        decoder_attention_heads=2, encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BartModel(config).save_pretrained(tmp_path / "float")
    settings = RTN.model_copy(update={"modality": "text"})
    aq.ArrowQuantV2(settings).quantize_diffusion_model(tmp_path / "float", tmp_path / "master", calibration="none")
    assert not aq.open_quantized(tmp_path / "master")["shared.weight"].kept
    aq.export_model(tmp_path / "master", "diffusers", tmp_path / "exported")
    loaded = transformers.BartModel.from_pretrained(tmp_path / "exported")
    swapped = aq.load_quantized(transformers.BartModel(config).eval(), tmp_path / "master")
    call = {"input_ids": torch.arange(8)[None], "decoder_input_ids": torch.arange(3)[None]}
    with torch.no_grad():
        expected, found = (model(**call).last_hidden_state for model in (swapped, loaded))
    assert torch.equal(found, expected)
    assert isinstance(loaded.shared.weight, torch.nn.Parameter)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight


def test_a_cast_changes_the_model_and_nothing_that_is_stored(folders):
    exported = folders.of("DiT")[2]
    loaded = diffusers.DiTTransformer2DModel.from_pretrained(exported, torch_dtype=torch.bfloat16)
    stored = load_file(exported / WEIGHTS)
    layer = loaded.transformer_blocks[0].attn1.to_q
    assert (loaded.dtype, layer.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    for part, buffer in layer.weight.arrays().items():
        assert torch.equal(buffer, stored[f"transformer_blocks.0.attn1.to_q.weight.{part}"])


def test_a_pipeline_is_quantized_in_place_saved_and_loaded_by_a_fresh_process(tmp_path):
    """What the reloaded pipeline draws is what the quantized one draws, so at the reported distance from the floats."""
    pipeline = quiet(PixelDiTPipeline.from_sample("digits-dit"))
    classes = {"class_labels": [3, 5]}

    def draw():
        return pipeline(**classes, num_inference_steps=4, generator=torch.Generator().manual_seed(3)).images

    before = draw()
    config = DiffusionQuantConfig(bit_width=4, layer_bit_widths={"*": 16, "*.attn1.*": 4, "*.ff.net.2": 4})
    report = quantize_pipeline(pipeline, config, [classes] * 4, 4, output=tmp_path / "master")
    assert report.component == "transformer"
    assert report.n_compared == 4
    assert 25 < report.sample_psnr_db < 60
    assert all(row.method.startswith("gptq") for row in report.result.layers if row.bit_width < 16)
    after = draw()
    assert 20 < 10 * np.log10(1 / np.mean((after - before) ** 2)) < 70
    pipeline.save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "after.npy", after)
    code = (
        "import sys, numpy as np, torch, diffusers; import arrowquant_nb; torch.set_num_threads(1)\n"
        "import arrowquant_nb.diffusers\n"
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1]); pipe.set_progress_bar_config(disable=True)\n"
        "seed = torch.Generator().manual_seed(3)\n"
        "images = pipe(class_labels=[3, 5], num_inference_steps=4, generator=seed).images\n"
        "assert 'QuantizedLinear' in repr(pipe.transformer)\n"
        "print(float(np.abs(images - np.load(sys.argv[2])).max()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved"), str(tmp_path / "after.npy")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-5


def test_a_pipeline_of_diffusers_loads_whole_and_its_text_encoder_too(tmp_path):
    pipeline = quiet(tiny_torch.dit_pipeline())
    report = quantize_pipeline(pipeline, RTN, [1, 2], 2)
    assert report.n_compared == 2
    assert report.result.quantized_path is None
    for page in (str(report.result), report.result._repr_html_(), report_html(report.result)):
        assert "not kept" in page
    assert "Run again" not in report.result._repr_html_()
    with pytest.raises(ModelNotFoundError, match="output=FOLDER"):
        aq.open_quantized(report.result.quantized_path)
    pipeline.save_pretrained(tmp_path / "dit")
    again = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "dit"))
    assert isinstance(again.transformer.transformer_blocks[0].attn1.to_q, QuantizedLinear)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    settings = {"num_inference_steps": 2, "output_type": "np"}
    images = [p([1], generator=g, **settings).images for p, g in zip((pipeline, again), seeds, strict=True)]
    assert np.array_equal(*images)

    text = quiet(tiny_torch.sd_pipeline(vocab_size=700))
    report = quantize_pipeline(text, RTN.model_copy(update={"modality": "text"}), component="text_encoder")
    assert (report.component, report.sample_psnr_db) == ("text_encoder", None)
    text.text_encoder.save_pretrained(tmp_path / "text")
    loaded = transformers.CLIPTextModel.from_pretrained(tmp_path / "text")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected, found = (m(ids).last_hidden_state for m in (text.text_encoder, loaded))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["UNet", "BERT"])
def test_layers_that_were_swapped_are_saved_like_loaded_ones(name, folders, tmp_path):
    _, master, exported = folders.of(name)
    model, call = (language_model(), None) if name == "BERT" else tiny_torch.seeded(name)
    call = {"input_ids": torch.arange(5, 25)[None]} if call is None else call(500)
    kind = type(model)
    aq.load_quantized(model, master)
    model.save_pretrained(tmp_path)
    stored, wanted = (json.loads((f / "config.json").read_text())["quantization_config"] for f in (tmp_path, exported))
    assert stored == wanted
    assert torch.equal(output_of(kind.from_pretrained(tmp_path), call), output_of(model, call))


@pytest.mark.parametrize("name", ["DiT", "UNet", "BERT"])
def test_dequantizing_gives_the_float_model_that_the_codes_stand_for(name, folders, tmp_path):
    _, master, exported = folders.of(name)
    float_model, call = (language_model(), None) if name == "BERT" else tiny_torch.seeded(name)
    call = {"input_ids": torch.arange(5, 25)[None]} if call is None else call(500)
    float_model.load_state_dict(aq.dequantize_state_dict(master), strict=False)
    model = type(float_model).from_pretrained(exported)
    model.dequantize()
    assert not any(isinstance(m, (QuantizedLinear, QuantizedConv2d)) for m in model.modules())
    assert model.state_dict().keys() == float_model.state_dict().keys()
    assert torch.equal(output_of(model, call), output_of(float_model, call))
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(output_of(type(model).from_pretrained(tmp_path), call), output_of(model, call))


def test_a_loaded_model_is_cast_and_dequantized_in_half_precision(folders):
    model = loading(folders.of("DiT")[2]).to(torch.float16)
    assert model.transformer_blocks[0].attn1.to_q.weight.scales.dtype == torch.float16
    assert {p.dtype for p in model.dequantize().parameters()} == {torch.float16}
    huge = loading(folders.of("DiT")[2])
    layer = huge.transformer_blocks[0].attn1.to_q
    layer.weight.scales.fill_(60000.0)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn1\.to_q\.weight overflows torch\.float16"):
        huge.half().dequantize()


def test_an_adapter_is_trained_around_quantized_layers_and_cannot_be_merged_into_codes(folders):
    peft = pytest.importorskip("peft")
    model = loading(folders.of("Flux")[2], diffusers.FluxTransformer2DModel)
    call = tiny_torch.seeded("Flux")[1](500)
    before = output_of(model, call)
    model.add_adapter(peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    assert isinstance(model.transformer_blocks[0].attn.to_q.base_layer, QuantizedLinear)
    assert not torch.allclose(output_of(model, call), before, atol=1e-3)
    model(**call).sample.sum().backward()
    assert all(("lora" in name) == (p.grad is not None) for name, p in model.named_parameters())
    with pytest.raises(AttributeError, match=r"holds codes; use dequantize\(\)"):
        model.fuse_lora()
    model.delete_adapters("default")
    assert torch.equal(output_of(model, call), before)


def test_rounded_inputs_are_saved_with_their_tables_over_time(tmp_path):
    pipeline = quiet(tiny_torch.dit_pipeline())
    config = DiffusionQuantConfig(bit_width=8, method="rtn", activation_bit_width=8, num_time_groups=3)
    report = quantize_pipeline(pipeline, config, [1, 2], 4)
    assert 10 < report.sample_psnr_db < 90
    pipeline.transformer.save_pretrained(tmp_path)
    loaded = loading(tmp_path)
    rules = {n: m.inputs.rule for n, m in loaded.named_modules() if isinstance(m, QuantizedLinear)}
    assert rules["transformer_blocks.0.attn1.to_q"] == "static"
    assert rules["transformer_blocks.0.norm1.linear"] == "float"
    torch.manual_seed(0)
    call = tiny_torch.seeded("DiT")[1](500)
    assert torch.equal(output_of(loaded, call), output_of(pipeline.transformer, call))
    compiled = torch.compile(loaded, backend="eager")
    for t in (100, 500, 900):
        call["timestep"] = torch.full_like(call["timestep"], t)
        torch.testing.assert_close(output_of(compiled, call), output_of(loaded, call), rtol=0, atol=1e-4)
    with pytest.raises(aq.ValidationError, match=r"DiTTransformer2DModel was called with timestep \[1001\.0"):
        loaded(**(call | {"timestep": torch.tensor([1001, 1001])}))


ROUNDED = DiffusionQuantConfig(bit_width=8, method="rtn", activation_bit_width=8, num_time_groups=3, modality="image")


def test_time_is_read_after_loading_as_it_was_calibrated(tmp_path):
    """A model that counts its timesteps backwards, from 1000 for the clean end to 0."""
    model, call = tiny_torch.seeded("DiT")
    calls = [call(t) for t in (100, 300, 500, 700, 900) for _ in range(2)]
    quantize_pipeline(model, ROUNDED, calls, 5, output=tmp_path / "master", time_range=(1000, 0))
    model.save_pretrained(tmp_path / "saved")
    aq.export_model(tmp_path / "master", "diffusers", tmp_path / "exported")
    swapped = aq.load_quantized(tiny_torch.seeded("DiT")[0], tmp_path / "master")
    others = [swapped, loading(tmp_path / "saved"), loading(tmp_path / "exported")]
    assert {m.forward.reading for m in others} == {TimeReading((1000.0, 0.0))}
    for timestep in (100, 900):
        inputs = call(timestep)
        expected = output_of(model, inputs)
        assert all(torch.equal(output_of(other, inputs), expected) for other in others)
    table = next(t for t in aq.open_quantized(tmp_path / "master").time_aware.tables if len(t.groups) > 1)
    assert table.group_at(0.1) != table.group_at(0.9)
    seen = []
    layer = others[1].get_submodule(table.layer.removesuffix(".weight"))
    layer.register_forward_hook(lambda *_: seen.append(current_time().values))
    output_of(others[1], call(900))
    assert seen == [(pytest.approx(0.1),)]


def test_a_language_model_reads_its_masks_after_loading(tmp_path):
    model = language_model()
    texts = np.random.default_rng(0).integers(5, 400, (4, 16))
    config = ROUNDED.model_copy(update={"modality": "text"})
    quantize_pipeline(model, config, texts, 4, mask_token_id=4)
    model.save_pretrained(tmp_path)
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert again.forward.reading == TimeReading(mask_token_id=4)
    call = {"input_ids": torch.tensor([[4, 4, 5, 6, 7, 8], [4, 4, 4, 4, 4, 8]])}
    assert torch.equal(output_of(again, call), output_of(model, call))


def test_the_rule_by_which_inputs_are_rounded_is_saved(folders, tmp_path):
    _, master, _ = folders.of("DiT")
    model, call = tiny_torch.seeded("DiT")
    aq.load_quantized(model, master, inputs="per_group").save_pretrained(tmp_path)
    again = loading(tmp_path)
    rules = [{n: m.inputs for n, m in x.named_modules() if isinstance(m, QuantizedLinear)} for x in (model, again)]
    assert rules[0] == rules[1]
    assert rules[0]["transformer_blocks.0.attn1.to_q"].rule == "per_group"
    inputs = call(500)
    assert torch.equal(output_of(again, inputs), output_of(model, inputs))
    changed_config(tmp_path, lambda settings, _: settings["layers"][Q].update(activation_rule="per_row"))
    with pytest.raises(MetadataError, match=r"to_q\.weight.*activation_rule 'per_row' is not one of"):
        loading(tmp_path)


def test_the_bundled_models_through_torch_are_what_numpy_computes():
    for name in ("digits-dit", "docs-mlm"):
        found = samples.evaluate(name, n=2, model=through_torch(name, load_sample(name)))
        assert found["network_sqnr_db"] > 100
    with pytest.raises(ModelNotFoundError, match="no bundled sample 'nothing'"):
        load_sample("nothing")


def test_the_command_calibrates_samples_and_pipeline_folders(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(main, ["calibrate", *map(str, arguments), "--json"])

    done = run("docs-mlm", tmp_path / "text.parquet", "--samples", 2)
    assert json.loads(done.stdout)["layers"] == 20
    quiet(tiny_torch.dit_pipeline()).save_pretrained(tmp_path / "dit")
    (tmp_path / "classes.txt").write_text("1\n2\n\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model_index.json").write_text('{"_class_name": ["pipeline", "Mine"]}')
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    done = run(tmp_path / "dit", tmp_path / "dit.parquet", "--prompts", tmp_path / "classes.txt", "--steps", 2)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "path": str(tmp_path / "dit.parquet"), "layers": 7, "inputs": 5, "timesteps": 2, "trajectories": 1,
        "unobserved": [],
    }  # fmt: skip
    for message, arguments in {
        "neither a bundled sample nor the folder of a diffusers pipeline": [tmp_path, tmp_path / "x.parquet"],
        "there is no file of prompts": [tmp_path / "dit", tmp_path / "x.parquet", "--prompts", tmp_path / "none.txt"],
        "names code of its own ('pipeline')": [tmp_path / "own", tmp_path / "x.parquet"],
        "part: diffusers cannot load this pipeline: ": [tmp_path / "part", tmp_path / "x.parquet"],
        "without prompts": ["docs-mlm", tmp_path / "x.parquet", "--prompts", tmp_path / "classes.txt"],
    }.items():
        done = run(*arguments)
        assert done.exit_code == 1
        assert message in done.output


def test_registering_needs_no_second_import():
    assert diffusers.quantizers.auto.AUTO_QUANTIZER_MAPPING["arrowquant"].__module__.startswith("arrowquant_nb.")
    assert transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING["arrowquant"].__module__.startswith("arrowquant_nb.")


def test_a_configuration_of_nothing_says_how_one_is_made(folders):
    """Both libraries make configurations of what a user says: from a dict, or for every part of a pipeline."""
    exported = folders.of("DiT")[2]
    language = transformers.quantizers.auto.AUTO_QUANTIZATION_CONFIG_MAPPING["arrowquant"]
    whole = diffusers.quantizers.PipelineQuantizationConfig("arrowquant", {"bits": 4})
    for given, make in {
        "nothing": ArrowQuantConfig,
        "['bits']": lambda: ArrowQuantConfig(bits=4),
        "dict": lambda: ArrowQuantConfig({"bits": 4}),
        "['bits', 'group_size']": lambda: language(bits=4, group_size=64),
        "['width']": lambda: diffusers.DiTTransformer2DModel.from_pretrained(
            folders.of("DiT")[0], quantization_config={"quant_method": "arrowquant", "width": 4}
        ),
        "['bits'] ": lambda: whole._resolve_quant_config(module_name="transformer"),
    }.items():
        said = re.escape(f"(given {given.strip()})")
        with pytest.raises(ConfigurationError, match=f"{said}.*quantize_pipeline") as found:
            make()
        assert all(way in str(found.value) for way in ("from_pretrained(FOLDER)", "arrowquant export MODEL FOLDER"))

    held = loading(exported).config.quantization_config
    stored = json.loads((exported / "config.json").read_text())["quantization_config"]
    for config in (held, ArrowQuantConfig.from_dict(stored), copy.deepcopy(held), language.from_dict(stored)):
        assert config.to_dict() == config.to_diff_dict() == json.loads(config.to_json_string()) == stored
        assert config.quant_method.value == "arrowquant"


def test_what_would_not_be_loaded_again_is_not_saved(folders, tmp_path):
    _, master, exported = folders.of("DiT")
    loaded, swapped = loading(exported), aq.load_quantized(tiny_torch.seeded("DiT")[0], master)
    pickled = pickle.loads(pickle.dumps(loaded))
    for model in (loaded, swapped, copy.deepcopy(loaded), pickled):
        assert model.save_pretrained.__wrapped__.__self__ is model
        with pytest.raises(
            ConfigurationError, match=r"safe_serialization=False writes a pickle.*leave it out.*dequant"
        ):
            model.save_pretrained(tmp_path / "none", safe_serialization=False)
        with pytest.raises(ConfigurationError, match="use_flashpack=True casts the codes"):
            model.save_pretrained(tmp_path / "none", use_flashpack=True)
        assert not (tmp_path / "none").exists()
        model.save_pretrained(tmp_path / "saved", safe_serialization=True, max_shard_size="20KB")
        _, call = tiny_torch.seeded("DiT")
        inputs = call(500)
        assert torch.equal(output_of(loading(tmp_path / "saved"), inputs), output_of(loaded, inputs))
    pipeline = PixelDiTPipeline(loaded, diffusers.DDIMScheduler())
    with pytest.raises(ConfigurationError, match="safe_serialization=False writes a pickle"):
        pipeline.save_pretrained(tmp_path / "pipeline", safe_serialization=False)
    loaded.dequantize()
    loaded.save_pretrained(tmp_path / "floats", safe_serialization=False)
    assert (tmp_path / "floats" / "diffusion_pytorch_model.bin").exists()
    language = transformers.BertForMaskedLM.from_pretrained(folders.of("BERT")[2])
    with pytest.raises(ConfigurationError, match="safe_serialization=False writes a pickle"):
        language.hf_quantizer.is_serializable(safe_serialization=False)


def test_libraries_that_are_missing_or_too_old_are_named_with_the_way_out():
    """Older ones did not say which files they load: folders seemed to lack every code."""
    here = {"torch": "2.13.0+cpu", "diffusers": "0.39.0.dev0", "transformers": "5.0.0rc1", "accelerate": "1.14.0"}
    assert unfit() == unfit(here.get) == unfit({**here, "diffusers": ""}.get) == ""
    old = unfit({**here, "diffusers": "0.38.0", "transformers": "4.57.1"}.get)
    assert old == (
        "needs diffusers 0.39 or newer, transformers 5.0 or newer, here is diffusers 0.38.0, transformers 4.57.1: "
        "pip install -U diffusers transformers"
    )
    assert unfit({**here, "accelerate": None}.get).startswith("needs accelerate, not installed here: pip install 'arr")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extra = set(project["optional-dependencies"]["diffusers"]) | set(project["optional-dependencies"]["torch"])
    assert {f"{name}>={major}.{minor}" for name, (major, minor) in NEEDED.items()} <= extra


def test_loading_does_not_quantize(folders):
    from arrowquant_nb.export.folder_settings import FolderSettings

    config = ArrowQuantConfig(FolderSettings({}))
    with pytest.raises(ConfigurationError, match="to quantize a float model, load it and call"):
        diffusers.DiTTransformer2DModel.from_pretrained(folders.of("DiT")[0], quantization_config=config)


@pytest.mark.parametrize("name", ["DiT", "BERT"])
def test_a_part_on_the_disk_is_refused_and_the_loaded_model_goes_there(name, folders, tmp_path):
    exported = folders.of(name)[2]
    kind = transformers.BertForMaskedLM if name == "BERT" else diffusers.DiTTransformer2DModel
    call = {"input_ids": torch.arange(5, 25)[None]} if name == "BERT" else tiny_torch.seeded(name)[1](500)
    with pytest.raises(ConfigurationError, match=r"'the model' on the disk.*disk_offload\(.*offload_buffers=True\)"):
        kind.from_pretrained(exported, device_map={"": "disk"}, offload_folder=tmp_path)
    model = kind.from_pretrained(exported, device_map={"": "cpu"})
    expected = output_of(model, call)
    accelerate.disk_offload(model, str(tmp_path), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(output_of(model, call), expected)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("swapped", [False, True])
def test_a_pipeline_offloads_codes_as_it_does_weights(swapped, folders):
    """Not to a real device: what its hooks will bring and take away is looked at."""
    _, master, exported = folders.of("DiT")
    model = diffusers.DiTTransformer2DModel.from_pretrained(exported)
    if swapped:
        model = aq.load_quantized(tiny_torch.seeded("DiT")[0], master)
    names = set(model.state_dict())
    pipeline = PixelDiTPipeline(model, diffusers.DDIMScheduler())
    pipeline.enable_sequential_cpu_offload(device="meta")
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert all(layer.weight._hf_hook.offload_buffers for layer in layers)
    assert all(layer.weight._hf_hook.weights_map["packed"].device.type == "cpu" for layer in layers)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", ["DiT", "UNet", "BERT"])
def test_under_autocast_a_quantized_model_answers_like_the_float_one(name, folders):
    """In the same dtype, and as near to float32 as rounding of weights and of activations are together."""
    model, call = (language_model(), None) if name == "BERT" else tiny_torch.seeded(name)
    inputs = {"input_ids": torch.arange(5, 25)[None]} if call is None else call(500)
    quantized = type(model).from_pretrained(folders.of(name)[2])
    with torch.autocast("cpu", torch.bfloat16):
        cast, both = output_of(model, inputs), output_of(quantized, inputs)
    assert both.dtype == cast.dtype == torch.bfloat16
    exact, rounded = output_of(model, inputs), output_of(quantized, inputs)
    apart = [float((y.float() - exact).square().mean()) for y in (rounded, cast, both)]
    assert 0 < apart[2] < 1.5 * (apart[0] + apart[1])


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("name", ["Flux", "BERT"])
def test_groups_of_quantized_layers_are_offloaded_as_float_ones_are(level, name, folders, tmp_path):
    """To the disk: there is no second device here, and what is on the disk is not in memory."""
    exported = folders.of(name)[2]
    if name == "BERT":  # without the tied output layer, whose float weight diffusers itself loses on the disk
        whole, call = transformers.BertForMaskedLM.from_pretrained(exported), {"input_ids": torch.arange(5, 25)[None]}
        model, last = whole.bert, "last_hidden_state"
        assert isinstance(model.embeddings.word_embeddings, QuantizedEmbedding)
    else:
        model, last = diffusers.FluxTransformer2DModel.from_pretrained(exported), "sample"
        call = tiny_torch.seeded(name)[1](500)
    stored = [buffer for name, buffer in model.named_buffers() if name.endswith((".packed", ".scales"))]
    with torch.no_grad():
        expected = model(**call)[last]
    apply_group_offloading(
        model, torch.device("cpu"), torch.device("cpu"), level, num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )  # fmt: skip
    for _ in range(3):
        for buffer in stored:
            buffer.zero_()  # whoever looks here before it was brought finds nothing
        with torch.no_grad():
            assert torch.equal(model(**call)[last], expected)
    assert list(tmp_path.glob("*.safetensors"))


def loading(folder, kind=None):
    return (kind or diffusers.DiTTransformer2DModel).from_pretrained(folder)


def changed_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"], config)
    (folder / "config.json").write_text(json.dumps(config))


Q = "transformer_blocks.0.attn1.to_q.weight"


def test_a_folder_of_another_model_names_what_differs(folders, exported):
    with pytest.raises(ShapeMismatchError, match=r"not a folder of this SD3Transformer2DModel: the folder lacks"):
        loading(exported, diffusers.SD3Transformer2DModel)
    changed_config(exported, lambda _, config: config.update(num_layers=2))
    with pytest.raises(ShapeMismatchError, match=r"the folder lacks \['transformer_blocks.1.attn1.to_k.bias'"):
        loading(exported)
    changed_config(exported, lambda _, config: config.update(num_layers=1, attention_head_dim=64))
    with pytest.raises(ShapeMismatchError, match=r"is \(128,\) in the folder, \(256,\) in the model"):
        loading(exported)


def test_newer_versions_and_damaged_settings_are_refused(exported):
    changed_config(exported, lambda settings, _: settings.update(format_version="2.0"))
    with pytest.raises(MetadataError, match="update arrowquant_nb"):
        loading(exported)
    changed_config(exported, lambda settings, _: settings.update(format_version="1.0", layers=[1]))
    with pytest.raises(MetadataError, match="layers must be an object"):
        loading(exported)


def test_missing_extra_and_misshapen_tensors_are_named(exported):
    tensors = load_file(exported / WEIGHTS)
    for match, change in {
        rf"missing \['{Q}.scales'\]": {f"{Q}.scales": None},
        "not expected": {f"{Q}.low_rank_a": torch.zeros(128, 1, dtype=torch.float16)},
        rf"'{Q}.packed' must be uint8 \[128, 64\]": {f"{Q}.packed": torch.zeros(128, 63, dtype=torch.uint8)},
        "must be float16": {f"{Q}.scales": tensors[f"{Q}.scales"].float()},
        r"not expected \['nothing'\]": {"nothing": torch.zeros(1)},
        r"missing \['proj_out_2.bias'\]": {"proj_out_2.bias": None},
    }.items():
        damaged = {name: value for name, value in (tensors | change).items() if value is not None}
        save_file(damaged, exported / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ShapeMismatchError, match=match):
            loading(exported)


def test_a_pickle_and_a_value_beyond_float16_are_refused(exported):
    tensors = load_file(exported / WEIGHTS)
    save_file(tensors | {"proj_out_2.bias": torch.full((16,), 1e6)}, exported / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'proj_out_2\.bias' overflows float16"):
        diffusers.DiTTransformer2DModel.from_pretrained(exported, torch_dtype=torch.float16)
    (exported / WEIGHTS).unlink()
    torch.save(tensors, exported / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a PyTorch pickle; nothing in it is executed here"):
        loading(exported)


def test_folders_of_language_models_are_refused_likewise(folders, tmp_path):
    kind, good = transformers.BertForMaskedLM, folders.of("BERT")[2]
    tensors = load_file(good / "model.safetensors")
    words = "bert.embeddings.word_embeddings.weight"
    for number, (match, error, change) in enumerate([
        (r"lacks \['bert\.encoder\.layer\.1\.", ShapeMismatchError, lambda _, c: c.update(num_hidden_layers=2)),
        (r"is \(400, 64\) in the folder, \(401, 64\)", ShapeMismatchError, lambda _, c: c.update(vocab_size=401)),
        ("format_version 7.0.*update arrowquant_nb", MetadataError, lambda s, _: s.update(format_version="7.0")),
        (rf"'{words}' is damaged.*bit_width 3", MetadataError, lambda s, _: s["layers"][words].update(bit_width=3)),
    ]):  # fmt: skip
        folder = shutil.copytree(good, tmp_path / str(number))
        changed_config(folder, change)
        with pytest.raises(error, match=match):
            kind.from_pretrained(folder)
    folder = shutil.copytree(good, tmp_path / "tensors")
    for change in ({f"{words}.packed": torch.zeros(400, 63, dtype=torch.uint8)}, {f"{words}.scales": None}):
        damaged = {name: value for name, value in (tensors | change).items() if value is not None}
        save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ShapeMismatchError, match=words):
            kind.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a PyTorch pickle; nothing in it is executed here"):
        kind.from_pretrained(folder)


def test_a_timestep_that_no_grid_was_found_for_names_the_layer_and_the_fix(tmp_path):
    model, call = tiny_torch.seeded("DiT")
    calls = [call(t) for t in (500, 600, 900) for _ in range(2)]
    quantize_pipeline(model, ROUNDED, calls, 3, output=tmp_path / "master")
    model.save_pretrained(tmp_path / "saved")
    loaded = loading(tmp_path / "saved")
    for covered in (400, 999, 1000):
        output_of(loaded, call(covered))
    message = r"transformer_blocks\.0\..*weight: the grids of its inputs cover timesteps 400\.\.999 of 1000.*at 399"
    with pytest.raises(aq.ValidationError, match=message):
        output_of(loaded, call(399))
    free = aq.load_quantized(tiny_torch.seeded("DiT")[0], tmp_path / "master", inputs="per_token")
    output_of(free, call(399))


def test_a_model_that_is_quantized_already_is_told_so(folders, tmp_path):
    master, exported = folders.of("DiT")[1:]
    model, call = tiny_torch.seeded("DiT")
    quantize_pipeline(model, RTN)
    for again in (
        lambda: quantize_pipeline(model, RTN),
        lambda: aq.calibrate(model, [call(5)] * 4, output=tmp_path / "c.parquet"),
        lambda: aq.load_quantized(model, master),
    ):
        with pytest.raises(ConfigurationError, match=r"(is quantized|holds quantized layers) already.*dequantize"):
            again()
    for no_module in (tiny_torch.dit_pipeline(), type(model), "digits-dit"):
        with pytest.raises(ConfigurationError, match=r"into a torch module, not into a (DiTPipeline|type|str)"):
            aq.load_quantized(no_module, master)
    with pytest.raises(ModelNotFoundError, match=r"no manifest\.json.*from_pretrained.*output=FOLDER"):
        aq.load_quantized(tiny_torch.seeded("DiT")[0], exported)


def test_inputs_may_be_an_iterator(tmp_path):
    pipeline = quiet(tiny_torch.dit_pipeline())
    assert quantize_pipeline(pipeline, RTN, (label for label in (1, 2)), steps=2).n_compared == 2


def test_refusals_of_the_pipeline_functions():
    with pytest.raises(ConfigurationError, match="is no pipeline and no model of diffusers or transformers"):
        quantize_pipeline(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="config must be a DiffusionQuantConfig, not dict"):
        quantize_pipeline(tiny_torch.seeded("DiT")[0], {"bit_width": 4})
    with pytest.raises(ModelNotFoundError, match="no bundled transformer 'docs-mlm'"):
        PixelDiTPipeline.from_sample("docs-mlm")
    pipeline = quiet(PixelDiTPipeline.from_sample("digits-dit"))
    with pytest.raises(ConfigurationError, match=r"classes in 0..9, got \[10\]"):
        pipeline([10])
    pipeline.enable_sequential_cpu_offload(device="meta")
    with pytest.raises(
        ConfigurationError, match=r"DiTTransformer2DModel has weights on the meta device.*remove_all_hooks"
    ):
        quantize_pipeline(pipeline)
