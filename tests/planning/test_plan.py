"""The memory model against hand counts, and against what autograd really keeps."""

import mmap

import pytest
import torch
from tests.tiny import bert, llama, mixtral, quantized

from lorasmith.attach import attach
from lorasmith.errors import PlanError
from lorasmith.methods.full import FullConfig
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.fused_block import fused_blocks
from lorasmith.ops.library import NATIVE_KERNELS
from lorasmith.planning import MemoryPlan, OptimizerMemory, PlanSettings, peak_resident_bytes, plan, resident_bytes
from lorasmith.planning.step_trace import trace_step
from lorasmith.quantized import QuantizedWeight


def adapted(model):
    attach(model, LoraConfig(r=4, target_modules="all-linear"))
    return model


def settings(**changes):
    return PlanSettings(**({"batch_size": 2, "length": 24, "baseline": 0} | changes))


def parts(model, **changes):
    return plan(model, settings(**changes)).components


def test_weights_gradients_and_optimizer_are_counted_to_the_byte():
    model = adapted(quantized(llama()))
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = parts(model)
    assert found["quantized weights"] == sum(layer.scheme.payload_bytes(layer.shape) for layer in layers)
    assert found["trainable parameters"] == found["gradients"] == 4 * trainable
    assert found["optimizer state"] == 8 * trainable
    assert found["one dequantized weight"] == 48 * 32 * 4


@pytest.mark.parametrize(("dtype", "copy"), [(torch.bfloat16, 2), (torch.float16, 4)])
def test_what_trains_in_16_bits_has_a_copy_in_float32_of_which_bf16_holds_half(dtype, copy):
    model = llama().to(dtype)
    attach(model, FullConfig(target_modules=["mlp"]))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = parts(model)
    assert found["gradients"] == 2 * trainable
    assert found["optimizer state"] == (8 + copy) * trainable


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float32, 4), (torch.bfloat16, 12)])
def test_the_update_of_the_largest_parameter_has_its_room(dtype, bytes_each):
    model = llama(intermediate_size=4096).to(dtype)
    attach(model, FullConfig(target_modules=["mlp"]))
    found = parts(model, batch_size=1, length=1)
    working = ("activations kept for backward", "logits and loss", "other working memory of a step")
    assert sum(found[name] for name in working) >= 32 * 4096 * bytes_each


def test_the_optimizers_own_state_and_working_memory_are_counted():
    model = llama(intermediate_size=4096)
    attach(model, FullConfig(target_modules=["mlp"]))
    largest = 32 * 4096
    eight_bit = OptimizerMemory(state=lambda parameter: 2 * parameter.numel(), update=lambda parameter: 10**9)
    found = parts(model, optimizer=eight_bit)
    assert found["optimizer state"] == 2 * 3 * 2 * largest
    working = ("activations kept for backward", "logits and loss", "other working memory of a step")
    assert sum(found[name] for name in working) == 10**9


def test_state_that_pages_stands_beside_the_peak():
    model = adapted(llama())
    plain, paged = (plan(model, settings(optimizer=OptimizerMemory(pages=pages))) for pages in (False, True))
    assert paged.host == plain.components["optimizer state"]
    assert paged.total == plain.total - paged.host
    assert MemoryPlan.from_json(paged.to_json()) == paged
    assert paged.lines()[-1].startswith("in host memory")


def test_parameters_that_move_in_the_backward_pass_have_few_gradients_at_once():
    model = llama(intermediate_size=4096)
    attach(model, FullConfig(target_modules=["mlp"]))
    largest = 4 * 32 * 4096
    ordinary = plan(model, settings(batch_size=1, length=1))
    moving = plan(model, settings(batch_size=1, length=1, optimizer=OptimizerMemory(in_backward=True)))
    assert ordinary.components["gradients"] == 6 * largest
    assert "gradients" not in moving.components
    # one gradient and what its update works with, where the ordinary step has all and one that is being added
    assert ordinary.total - moving.total == pytest.approx(5 * largest, rel=0.02)


def test_a_head_that_trains_has_its_gradient_whole():
    model = llama()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    moving = parts(model, optimizer=OptimizerMemory(in_backward=True))
    assert moving["gradients"] == 4 * model.lm_head.weight.numel()


def test_shapes_alone_decide():
    model = adapted(quantized(llama()))
    assert parts(model) == parts(model.to("meta"))


def test_the_model_is_not_touched():
    model = adapted(quantized(llama()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    plan(model, settings(gradient_checkpointing=True))
    assert [module.training for module in model.modules()] == training
    assert not any(vars(module).get("gradient_checkpointing") for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def really_saved(model, ids):
    """Bytes of the storages that autograd keeps of a real forward, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    weights |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # held, so that no address is given out twice
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.train().base_model(input_ids=ids, use_cache=False).last_hidden_state
        kept[output.untyped_storage().data_ptr()] = output.untyped_storage()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("length", [24, 96])
def test_traced_activations_are_those_that_autograd_saves(length):
    model = adapted(llama())
    traced = trace_step(model, settings(length=length), whole=False).saved
    real = really_saved(model, torch.zeros(2, length, dtype=torch.int64))
    # the trace also counts what a Python frame of the model still names, such as the rotary table
    assert real <= traced <= 1.05 * real


def test_checkpointing_keeps_less_and_longer_batches_keep_proportionally_more():
    model = adapted(llama())
    kept = "activations kept for backward"
    assert parts(model, gradient_checkpointing=True)[kept] < parts(model)[kept] / 2
    assert parts(model, batch_size=8)[kept] == pytest.approx(4 * parts(model)[kept], rel=0.05)


def test_nothing_is_kept_below_the_lowest_adapter():
    low, high = llama(), llama()
    attach(low, LoraConfig(r=4, target_modules="all-linear"))
    attach(high, LoraConfig(r=4, target_modules="all-linear", layers_to_transform=[1]))
    kept = "activations kept for backward"
    assert parts(high)[kept] < 0.65 * parts(low)[kept]


def test_a_classifier_is_planned_whole():
    model = adapted(bert())
    found = parts(model, task="classification")
    assert "logits and loss" not in found
    assert found["activations kept for backward"] > 0


def test_a_device_without_kernels_of_ours_needs_more_for_its_logits():
    model = adapted(llama())
    assert parts(model, device="cuda")["logits and loss"] > parts(model)["logits and loss"]


def test_the_kernels_and_types_of_the_device_that_is_planned_for_decide(monkeypatch):
    model = adapted(llama())
    settings = PlanSettings(2, 64, autocast=torch.bfloat16, baseline=0, device="cuda")

    def planned(device: str) -> int:
        for op in ("rms_norm", "gated_activation"):
            monkeypatch.setitem(NATIVE_KERNELS, op, {device})
        return plan(model, settings).total

    monkeypatch.setitem(NATIVE_KERNELS, "rms_norm", {"cuda"})
    with fused_blocks(model, torch.device("cuda")):
        own, others = planned("cuda"), planned("cpu")
    assert own < others


def test_a_plan_survives_its_file_and_its_lines_sum_to_the_total():
    made = plan(adapted(llama()), settings(baseline=123))
    assert MemoryPlan.from_json(made.to_json()) == made
    assert made.total == sum(made.components.values())
    assert made.lines()[-1].startswith("predicted peak")
    assert len(made.lines()) == len(made.components) + 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "cpu", "components": {"weights": "many"}}'])
def test_a_file_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError, match="does not hold a memory plan"):
        MemoryPlan.from_json(text)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"length": -1}])
def test_impossible_sizes_are_refused_by_name(wrong):
    with pytest.raises(PlanError, match=next(iter(wrong))):
        settings(**wrong)


def test_a_model_that_needs_data_is_refused_with_the_reason():
    model = adapted(llama())
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: output * float(output.sum()))
    with pytest.raises(PlanError, match="LlamaForCausalLM cannot be predicted from shapes"):
        plan(model, settings())


def test_resident_memory_grows_with_what_is_written():
    before = resident_bytes()
    # straight from the kernel: what the allocator has kept of freed blocks would not grow the process
    held = mmap.mmap(-1, 64 << 20)
    held.write(b"1" * (64 << 20))
    assert resident_bytes() - before > 60 << 20
    assert peak_resident_bytes() >= resident_bytes() - (1 << 20)
    held.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapted_experts_are_planned_without_a_second_stack(dtype):
    model = mixtral(hidden_size=64, intermediate_size=128, num_local_experts=16).to(dtype)
    attach(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    stack = max(p.numel() * p.element_size() for p in model.parameters())
    # eight tokens keep less than one stack of 16 x 256 x 64 weights; the sums would be four stacks of that size or half
    assert plan(model, settings(batch_size=1, length=8)).components["activations kept for backward"] < stack


def test_a_forward_that_fails_without_data_writes_no_traceback(caplog):
    model = adapted(llama())
    # torch logs the failure of a shape function
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: output[0] @ output[0])
    with pytest.raises(PlanError, match="LlamaForCausalLM"):
        plan(model, settings())
    assert not caplog.records


def test_copies_of_trained_base_tensors_are_counted_and_a_copied_model_has_its_own(capfd):
    model = llama()
    attach(model, FullConfig(target_modules=["mlp"]))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # the originals, and the values that the adapter has when it does not act
    assert parts(model)["copies of trained base tensors"] == 2 * 4 * trained
    # torch tells of a failure there by a traceback, whatever is made of it
    assert capfd.readouterr().err == ""


def test_inputs_in_host_memory_leave_two_of_them_on_the_device():
    model = adapted(llama(num_hidden_layers=6))
    fields = {"batch_size": 2, "length": 24, "gradient_checkpointing": True}
    kept, offloaded = (plan(model, settings(**fields, offload_checkpoints=away)) for away in (False, True))
    # f32 inputs of six layers
    one = 2 * 24 * 32 * 4
    assert (kept.host, offloaded.host) == (0, 6 * one)
    assert offloaded.total < kept.total
    saved = "activations kept for backward"
    # the last layer's input waits where it is
    assert kept.components[saved] - offloaded.components[saved] == 5 * one
    assert "in host memory" in "".join(offloaded.lines())
    assert MemoryPlan.from_json(offloaded.to_json()) == offloaded
