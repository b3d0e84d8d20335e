"""Adapters written by the real PEFT are read here with equal logits, and ours there: every case of cases.py.

Over an NF4 base PEFT adapts the dequantized dense weights: its own 4-bit layers, bitsandbytes', dequantize wrongly on a
CPU for most sizes. One test adapts bitsandbytes' layers themselves, at a size that they serve.
"""

import copy
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM

import lorasmith
from compat.cases import ALL, CASES, SHAPES, TEXT, Case
from lorasmith.attach import make_dense
from lorasmith.errors import AttachError
from lorasmith.methods import InputMethod, SelectiveMethod, SiteMethod, methods
from tiny import llama, logits, quantized, shake

peft = pytest.importorskip("peft")

# what the real PEFT says on saving an adapted embedding, of a LoRA with biases, which it takes for half a matrix, of
# VeRA without its matrices, of its own sparse product, of norms, and of a Conv1D that was quantized
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is:UserWarning"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A and vera_B:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    # it looks for patterns' names among modules only
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings(r"ignore:Adapter 'default'. \d+ LoRA tensor.s. have invalid shape"),
]

# two orders of the same f32 sums; over NF4 ours multiplies codes by scales as it sums, theirs dense weights
TOLERANCE = {"atol": 2e-6, "rtol": 0}
# fields that PEFT does not write into its file, or that are a note of its own
NOT_SHARED = {"runtime_config", "peft_version"}
OF_PEFT = [name for name, method in methods.items() if method.peft_type in peft.PeftType.__members__]
CONFIGS = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING


def is_no_parameter_here(name: str) -> bool:
    """Whether PEFT holds a constant as a parameter: the number that AdaLoRA divides by."""
    return ".ranknum." in name


def config_of_peft(method: str) -> type:
    return CONFIGS[methods[method].peft_type]


@lru_cache(maxsize=2)
def made(shape: str, storage: str, dense: bool) -> nn.Module:
    model = SHAPES[shape].build()
    model = quantized(model) if storage == "nf4" else model
    if dense:
        make_dense(model)
    return model


def our_base(case: Case) -> nn.Module:
    return copy.deepcopy(made(case.shape, case.storage, dense=False))


def their_base(case: Case) -> nn.Module:
    return copy.deepcopy(made(case.shape, case.storage, dense=True))


class Pair(NamedTuple):
    """One adapter in both libraries, and what each says with it."""

    case: Case
    ours: lorasmith.PeftModel
    theirs: nn.Module
    our_scores: Tensor
    their_scores: Tensor


def pair(case: Case, ours: lorasmith.PeftModel, theirs: nn.Module) -> Pair:
    return Pair(case, ours, theirs, case.scores(ours), case.scores(theirs))


@pytest.fixture(scope="module", autouse=True)
def no_model_cards():
    """PEFT's cards, whose template it compiles anew for each, are not what is compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peft.PeftModel, "create_or_update_model_card", lambda model, folder: None)
        yield


@pytest.fixture(scope="module", params=ALL, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def read(case, tmp_path_factory):
    """An adapter that PEFT made and saved, read here."""
    folder = tmp_path_factory.mktemp("theirs")
    theirs = shake(peft.get_peft_model(their_base(case), case.config(config_of_peft(case.method))).eval())
    theirs.save_pretrained(folder)
    return pair(case, lorasmith.PeftModel.from_pretrained(our_base(case), folder), theirs)


@pytest.fixture(scope="module")
def written(case, tmp_path_factory):
    """An adapter that was made and saved here, read by PEFT."""
    folder = tmp_path_factory.mktemp("ours")
    ours = shake(lorasmith.get_peft_model(our_base(case), case.config(methods[case.method].config_class)).eval())
    ours.save_pretrained(folder)
    return pair(case, ours, peft.PeftModel.from_pretrained(their_base(case), folder).eval())


@pytest.mark.parametrize("method", OF_PEFT)
def test_every_method_that_peft_has_too_is_compared_with_it(method):
    assert CASES.get(method), f"add a line for {method!r} to tests/compat/cases.py"


def test_what_peft_wrote_is_read_with_equal_logits(read):
    assert_close(read.our_scores, read.their_scores, **TOLERANCE)
    assert read.ours.peft_config["default"].peft_type == read.theirs.peft_config["default"].peft_type.value


def test_what_is_written_here_is_read_by_peft_with_equal_logits(written):
    assert_close(written.their_scores, written.our_scores, **TOLERANCE)


def test_logits_differ_from_the_bases_so_that_equality_means_something(written):
    with written.ours.disable_adapter():
        assert (written.case.scores(written.ours) - written.our_scores).abs().max() > 1e-3


def test_the_same_parameters_train_as_in_peft(read, written):
    trainable, total = read.theirs.get_nb_trainable_parameters()
    total -= sum(parameter.numel() for name, parameter in read.theirs.named_parameters() if is_no_parameter_here(name))
    ours = written.ours.get_nb_trainable_parameters()
    if isinstance(methods[written.case.method], SelectiveMethod):
        # theirs trains copies, which it counts among all; ours trains in place
        total = ours[1]
    assert ours == (trainable, total)


# last, since it takes the models of `read` apart
def test_merged_models_are_equal(read):
    case = read.case
    if isinstance(methods[case.method], InputMethod):
        with pytest.raises(AttachError, match="cannot be merged"):
            read.ours.merge_and_unload()
        return
    ours, theirs = read.ours.merge_and_unload(), read.theirs.merge_and_unload()
    assert_close(case.scores(ours), case.scores(theirs), **TOLERANCE)
    assert_close(case.scores(ours), read.our_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", OF_PEFT)
def test_configs_have_pefts_fields_and_defaults(method):
    shape, given = CASES[method][0]
    case = Case(method, shape, given, "dense")
    theirs = case.config(config_of_peft(method)).to_dict()
    ours = case.config(methods[method].config_class).to_dict()
    theirs = {name: value for name, value in theirs.items() if name not in NOT_SHARED}
    assert {name: ours.get(name, "missing") for name in theirs} == theirs


@pytest.mark.parametrize("method", [name for name in OF_PEFT if isinstance(methods[name], SiteMethod)])
def test_parameters_are_named_inside_as_in_peft(method):
    shape, given = CASES[method][0]
    case = Case(method, shape, given, "dense")
    theirs = peft.get_peft_model(their_base(case), case.config(config_of_peft(method)))
    ours = lorasmith.get_peft_model(our_base(case), case.config(methods[method].config_class))
    # a bare tensor of theirs lies in a child module here, and so ends in .weight
    names = {name.removesuffix(".weight") for name, _ in ours.named_parameters()}
    wanted = {name.removesuffix(".weight") for name, _ in theirs.named_parameters() if not is_no_parameter_here(name)}
    assert names == wanted


@pytest.mark.parametrize("method", OF_PEFT)
def test_a_trained_models_adapter_is_equal_too(method, shared, tmp_path):
    """Weights that were trained have outliers, which random ones lack."""
    given = next((given for shape, given in CASES[method] if shape == "llama"), None)
    if given is None:
        pytest.skip(f"{method} has no case on a Llama")
    folder = real(shared, "tinystories-656k")
    config = Case(method, "llama", given, "dense").config(config_of_peft(method))
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).eval()
    shake(theirs).save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    wanted = logits(theirs)[:, -TEXT["input_ids"].shape[1] :]
    # of logits of the order of ten
    assert_close(logits(ours), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("config", ["LoraConfig", "IA3Config"])
def test_a_trained_encoders_adapter_is_equal_too(config, shared, tmp_path):
    folder = real(shared, "minilm-l6-v2")
    bases = [AutoModel.from_pretrained(folder, dtype=torch.float32) for _ in range(2)]
    theirs = peft.get_peft_model(bases[0], getattr(peft, config)(task_type="FEATURE_EXTRACTION"))
    shake(theirs.eval()).save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(bases[1], tmp_path)
    with torch.no_grad():
        states = [model(**TEXT).last_hidden_state for model in (ours, theirs)]
    assert_close(*states, atol=2e-5, rtol=0)


def real(shared: Path, name: str) -> Path:
    folder = shared / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_over_bitsandbytes_own_layers_the_logits_are_equal(method, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")

    def base() -> nn.Module:
        # where in_features is no multiple of 64, bitsandbytes' CPU kernel is wrong
        model = llama(hidden_size=64, intermediate_size=128)
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path != "lm_head":
                layer = bnb.nn.Linear4bit(
                    module.in_features, module.out_features, module.bias is not None, torch.float32, quant_type="nf4"
                )
                layer.load_state_dict(module.state_dict())
                model.set_submodule(path, layer.to("cpu"))
        return model

    case = Case(method, "llama", {}, "nf4")
    theirs = shake(peft.get_peft_model(base(), case.config(config_of_peft(method))).eval())
    theirs.save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(base(), tmp_path)
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in ours.modules())
    assert_close(case.scores(ours), case.scores(theirs), **TOLERANCE)


def test_logits_of_a_loaded_adapter_equal_those_before_saving(tmp_path):
    ours = shake(lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(task_type="CAUSAL_LM")).eval())
    ours.save_pretrained(tmp_path)
    assert torch.equal(logits(lorasmith.PeftModel.from_pretrained(llama(), tmp_path)), logits(ours))
