"""docs/merging.png from results/merge.json: what single layers keep of an adapter, by its size. Needs matplotlib.

python benchmarks/plot_merge.py
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot
from merge_table import middle, read

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "merging.png"
# way -> colour and dashes; the two that start from 16 bits are dashed
STYLES = {
    "requantize": ("#c0392b", "-"),
    "compensate": ("#1f77b4", "-"),
    "round": ("#e59866", "--"),
    "compensate from 16 bits": ("#5dade2", "--"),
    "QA-LoRA, exact": ("#1e8449", "-"),
}
TITLES = {"nf4": "NF4, 4.1 bits", "int4": "int4, 4.1 bits (QA-LoRA 4.6)", "int8": "int8, 8 bits"}


def main() -> None:
    rows = [row for row in read() if row["part"] == "layers"]
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.2), sharex=True, sharey="row", layout="constrained")
    for column, (name, title) in enumerate(TITLES.items()):
        for way, (colour, dashes) in STYLES.items():
            mine = [row for row in rows if row["format"] == name and row["way"] == way]
            sizes = sorted({row["size"] for row in mine})
            for axis, key in zip(axes[:, column], ("kept", "other")):
                points = [middle([row for row in mine if row["size"] == size], key) for size in sizes]
                # nothing at all has no place on a logarithmic axis
                shown = [max(point, 0.02) if key == "other" else point for point in points]
                axis.plot(sizes, shown, dashes, color=colour, marker="o", markersize=4, label=way)
        axes[0, column].set_title(title)
        axes[0, column].axhline(1, color="0.8", linewidth=1, zorder=0)
        axes[1, column].axhline(1, color="0.8", linewidth=1, zorder=0)
        axes[1, column].set_yscale("log")
        axes[1, column].set_xscale("log")
        axes[1, column].set_xticks([0.005, 0.01, 0.02, 0.05, 0.1, 0.2], ["0.5 %", "1 %", "2 %", "5 %", "10 %", "20 %"])
        axes[1, column].minorticks_off()
        axes[1, column].set_xlabel("size of the adapter, |dW| / |W|")
    axes[0, 0].set_ylabel("kept of the adapter's effect")
    axes[0, 0].set_ylim(-0.05, 1.3)
    axes[1, 0].set_ylabel("what else changed,\nin units of that effect")
    axes[1, 0].set_ylim(0.017, 30)
    axes[1, 0].set_yticks([0.02, 0.1, 1, 10], ["0", "0.1", "1", "10"])
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
