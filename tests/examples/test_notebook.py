"""The notebook, executed as it is shipped: in a fresh kernel, without outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
kernels = pytest.importorskip("jupyter_client.kernelspec")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"
SLOWEST_CELL = 240  # seconds; training takes about ten on a free core


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """All that the notebook's cells print or show."""
    if "python3" not in kernels.KernelSpecManager().find_kernel_specs():
        pytest.skip("no kernel named python3: pip install ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        # what the notebook leaves behind goes with the test's folder
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("notebook")))
        nbclient.NotebookClient(notebook, timeout=SLOWEST_CELL, kernel_name="python3").execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs if output.get("name") != "stderr"]
    return "".join(output.get("text") or output["data"]["text/plain"] + "\n" for output in outputs)


def test_the_notebook_is_shipped_without_outputs():
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_trained_adapter_answers_after_saving_and_loading_both_ways(printed):
    assert "four and one is five." in printed
    assert "six and one is seven." in printed


@pytest.mark.slow
def test_what_is_merged_is_an_ordinary_model_with_the_same_logits(printed):
    kind, _, difference = printed.strip().splitlines()[-1].partition(" differs by at most ")
    assert kind == "LlamaForCausalLM"
    # logits of up to about 13, after two orders of f32 sums
    assert float(difference) < 1e-4
