"""Options that contradict one another, or that say nothing to what was asked for: refused, never passed over."""

import pytest

from lorasmith.models.tensor_file import StoredTensor


@pytest.fixture(autouse=True)
def _no_weight_is_read(monkeypatch):
    def refused(self):
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(StoredTensor, "read", refused)


def refused(answer, *parts):
    """Asserts one line with all parts, and the exit code of bad input."""
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
    for part in parts:
        assert part in answer.err


def test_a_resumed_run_is_no_dry_run(lorasmith, tmp_path):
    refused(lorasmith("train", "--resume", tmp_path, "--dry-run"), "--dry-run cannot be given")


@pytest.mark.parametrize(
    "option",
    [["--method", "round"], ["--calibration", "x.txt"], ["--base-16bit", "x"], ["--least-kept", "0.5"], ["--force"]],
)
def test_a_merge_into_16_bits_reads_no_option_of_a_quantized_one(lorasmith, tmp_path, option):
    answer = lorasmith("merge", tmp_path, "--into", "bf16", "--out", tmp_path / "out", *option)
    refused(answer, f"--into bf16 does not read {' '.join(option)}", "nf4")


@pytest.mark.parametrize("share", ["80", "-1", "nan"])
def test_what_a_merge_must_keep_is_a_share(lorasmith, tmp_path, share):
    answer = lorasmith("merge", tmp_path, "--into", "nf4", "--out", tmp_path / "out", "--least-kept", share)
    refused(answer, f"--least-kept {share}", "[0, 1]")


@pytest.mark.parametrize(
    ("how", "option"),
    [
        ("cat", ["--rank", "4"]),
        ("svd", ["--density", "0.5"]),
        ("svd", ["--majority-sign", "frequency"]),
        ("magnitude_prune --density 0.5", ["--seed", "3"]),
    ],
)
def test_combining_refuses_options_that_the_way_does_not_read(lorasmith, tmp_path, how, option):
    answer = lorasmith("combine", tmp_path, "--out", tmp_path / "out", "--how", *how.split(), *option)
    refused(answer, f"--how {how.split()[0]} does not read {' '.join(option)}")


@pytest.mark.parametrize("weights", ["nan,1", "inf,1", ""])
def test_weights_of_a_combination_are_finite_numbers(lorasmith, tmp_path, weights):
    answer = lorasmith("combine", tmp_path, tmp_path, "--out", tmp_path / "out", "--weights", weights)
    refused(answer, f"--weights {weights}", "0.7,0.3")


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_seeds_are_those_of_the_generator(lorasmith, model_folder, tmp_path, seed):
    how = ("--how", "dare_linear", "--density", 0.5)
    refused(lorasmith("combine", tmp_path, "--out", tmp_path / "out", *how, "--seed", seed), f"seed={seed}")
    refused(lorasmith("generate", model_folder, "the cat", "--temperature", 1, "--seed", seed), f"seed={seed}")


def test_sampling_from_the_likeliest_needs_a_temperature(lorasmith, model_folder):
    refused(lorasmith("generate", model_folder, "the cat", "--top-p", 0.5), "top_p=0.5", "temperature")


def test_a_batch_has_examples(lorasmith, model_folder, data_file):
    refused(lorasmith("evaluate", model_folder, "--data", data_file, "--batch-size", 0), "batch_size=0", "at least 1")


@pytest.mark.parametrize("alpha", ["0", "-4", "nan"])
def test_a_foreign_adapter_has_an_alpha(lorasmith, tmp_path, alpha):
    answer = lorasmith("convert", tmp_path / "x.safetensors", "--alpha", alpha, "--out", tmp_path / "out")
    refused(answer, f"alpha={alpha}", "above 0")


def test_cuda_graphs_need_cuda(lorasmith, model_folder):
    answer = lorasmith("generate", model_folder, "the cat", "--device", "cpu", "--cuda-graphs")
    refused(answer, "CUDA graphs need a CUDA GPU", "cpu", "leave them out")
