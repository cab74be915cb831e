"""A GGUF file loads through diffusers' own GGUF path and computes what the dequantized model computes."""

import numpy as np
import pytest

from arrowquant_nb import export_model, open_quantized
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

CONFIG = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64,
    "num_attention_heads": 4, "joint_attention_dim": 256, "pooled_projection_dim": 256, "guidance_embeds": False,
    "axes_dims_rope": [16, 24, 24],
}  # fmt: skip
SETTINGS = {
    "Q4_K": {"bit_width": 4, "group_size": 32, "scale_format": "k", "method": "uls"},
    "Q2_K": {"bit_width": 2, "group_size": 16, "scale_format": "k", "method": "uls"},
    "Q4_1": {"bit_width": 4, "group_size": 64, "scale_format": "float16"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flux") / "flux"
    diffusers.FluxTransformer2DModel(**CONFIG).save_pretrained(folder)
    return folder


def output(model):
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        return model(
            hidden_states=noise(1, 16, 16), encoder_hidden_states=noise(1, 8, 256), pooled_projections=noise(1, 256),
            timestep=torch.tensor([0.5]), img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(8, 3), return_dict=False,
        )[0].numpy()  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_diffusers_loads_the_file_and_has_the_same_blocks(source, tmp_path, kind):
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    config = DiffusionQuantConfig(min_accuracy=0.0, modality="image", **SETTINGS[kind])
    ArrowQuantV2(config).quantize_diffusion_model(source, tmp_path / "m", calibration="none")
    report = export_model(tmp_path / "m", "gguf", tmp_path / "m.gguf")
    exact = {t.name for t in report.tensors if t.written_as == kind and t.exact}
    assert len(exact) > 8
    loaded = diffusers.FluxTransformer2DModel.from_single_file(
        str(tmp_path / "m.gguf"), config=str(source), torch_dtype=torch.float32,
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip
    with open_quantized(tmp_path / "m") as model:
        state = dict(loaded.named_parameters())
        for name in exact:
            wanted = model[name].dequantize()
            blocks = state[name].as_tensor().numpy().view(np.uint8)
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
            np.testing.assert_array_equal(values.view(np.uint32), wanted.view(np.uint32))
            halves = dequantize_gguf_tensor(state[name])  # diffusers computes it in float16
            np.testing.assert_allclose(halves.float().numpy(), wanted, atol=4e-3 * np.abs(wanted).max())
    export_model(tmp_path / "m", "safetensors", tmp_path / "floats")
    floats = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "floats", torch_dtype=torch.float32)
    wanted, got = output(floats), output(loaded)
    error = 10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum())
    assert error > 35  # the INT8 layers were rounded to Q8_0
