"""Networks from elsewhere that this suite cannot run, and damaged ones, are refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_cases import REFERENCE, SCHEDULER, adm_case, card, folder, made_up
from safetensors.torch import save_file
from torch import nn

from suite.errors import InputError
from suite.foreign.adm import load_adm
from suite.foreign.chain import Chain
from suite.foreign.diffusers_unet import load_diffusers
from suite.foreign.unet import AttentionUNet, Layout

BAD_CONFIG = {
    "down_block_types.0": {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]},
    "up_block_types.1": {"up_block_types": ["UpBlock2D", "SkipUpBlock2D"]},
    "mid_block_type": {"mid_block_type": "UNetMidBlock2DCrossAttn"},
    "class_embed_type": {"class_embed_type": "timestep"},
    "num_class_embeds": {"num_class_embeds": 10},
    "time_embedding_type": {"time_embedding_type": "fourier"},
    "act_fn": {"act_fn": "mish"},
    "center_input_sample": {"center_input_sample": True},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "spatial"},
    "one value per level": {"block_out_channels": [8, 16, 16]},
    "heads of 5": {"attention_head_dim": 5},
    "in 5 groups": {"norm_num_groups": 5},
    "only a UNet2DModel": {"_class_name": "UNet2DConditionModel"},
    "do not fit": {"layers_per_block": 2},
    r"expected \(": {"block_out_channels": [8, 24], "attention_head_dim": 4},
}


@pytest.mark.parametrize("message", BAD_CONFIG)
def test_diffusers_networks_it_cannot_run_are_refused(message: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "unet2d", REFERENCE["diffusers"][0], **BAD_CONFIG[message])
    with pytest.raises(InputError, match=message):
        load_diffusers(path, card(2))


BAD_SCHEDULER = {
    "beta_schedule": {"beta_schedule": "sigmoid"},
    "beta_schedule: ": {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0},
    "prediction_type": {"beta_schedule": "linear", "prediction_type": "flow"},
    "rescale_betas_zero_snr": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    "beta_end": {"beta_schedule": "linear", "beta_end": 1.5},
    "2 rates beta for 1000": {"beta_schedule": "linear", "trained_betas": [0.1, 0.2]},
}


@pytest.mark.parametrize("message", BAD_SCHEDULER)
def test_schedules_it_cannot_run_are_refused(message: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "unet2d", REFERENCE["diffusers"][0], BAD_SCHEDULER[message])
    with pytest.raises(InputError, match=message):
        load_diffusers(path, card(2))


def test_no_schedule_is_guessed(tmp_path: Path) -> None:
    path = folder(tmp_path / "unet2d", REFERENCE["diffusers"][0], None)
    with pytest.raises(InputError, match="pass `scheduler`"):
        load_diffusers(path, card(2))
    assert load_diffusers(path, card(2), SCHEDULER).net.chain == Chain()


def test_folder_faults_are_told(tmp_path: Path) -> None:
    case = REFERENCE["diffusers"][0]
    with pytest.raises(InputError, match="cannot read"):
        load_diffusers(tmp_path / "nowhere", card(2))
    path = folder(tmp_path / "unet2d", case)
    weights = path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_diffusers(path, card(2))
    weights.rename(path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"is a pickle, .* convert it"):
        load_diffusers(path, card(2))
    (path / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="there is no file"):
        load_diffusers(path, card(2))
    bad = made_up(case["shapes"])
    bad["conv_in.bias"][0] = float("nan")
    save_file(bad, weights)
    with pytest.raises(InputError, match=r"NaN or infinity in head\.bias"):
        load_diffusers(path, card(2))
    (path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_diffusers(path, card(2))


BAD_CARD = {
    "unit": {"scale": 1.0, "offset": 0.0, "channels": 3},
    "scale": card(3, scale=0.0),
    "offset": card(3, offset=float("nan")),
    "its card says 1": card(1),
    "colour": card(3, colour="red"),
}


@pytest.mark.parametrize("message", BAD_CARD)
def test_cards_that_do_not_fit_are_refused(message: str) -> None:
    case = REFERENCE["adm"][0]
    with pytest.raises(InputError, match=message):
        load_adm(made_up(case["shapes"]), case["config"], BAD_CARD[message])


BAD_FLAGS = {
    "class_cond": {"class_cond": True},
    "noise_schedule": {"noise_schedule": "sqrt"},
    "channel_mult is needed": {"channel_mult": ""},
    "num_chanels": {"num_chanels": 64},
    "attention heads of 48": {"num_head_channels": 48},
    "attention_resolutions": {"attention_resolutions": "0"},
    "do not fit": {"num_res_blocks": 2},
    "resize": {"resblock_updown": False},
}


@pytest.mark.parametrize("message", BAD_FLAGS)
def test_flags_that_do_not_fit_are_refused(message: str) -> None:
    with pytest.raises(InputError, match=message):
        adm_case(0, **BAD_FLAGS[message])


def test_adm_files_that_are_not_its_own_are_refused(tmp_path: Path) -> None:
    case = REFERENCE["adm"][0]
    with pytest.raises(InputError, match=r"is a pickle, .*torch\.load\('model\.pt', weights_only=True\), 'model\.saf"):
        load_adm(tmp_path / "model.pt", case["config"], card(3))
    with pytest.raises(InputError, match="conditioned on a class"):
        load_adm(made_up(case["shapes"]) | {"label_emb.weight": torch.zeros(10, 128)}, case["config"], card(3))
    with pytest.raises(InputError, match=r"no input_blocks\.0\.0\.weight"):
        load_adm({"weight": torch.zeros(1)}, case["config"], card(3))
    file = tmp_path / "model.safetensors"
    save_file(made_up(case["shapes"]), file)
    assert load_adm(file, case["config"], card(3)).card.name == "model"


def test_layout_lists_need_a_value_per_level() -> None:
    layout = adm_case(0).net.network.layout.model_dump()
    with pytest.raises(ValueError, match="down_heads needs one value"):
        Layout(**layout | {"down_heads": [0]})
    assert isinstance(AttentionUNet(Layout(**layout)), nn.Module)
