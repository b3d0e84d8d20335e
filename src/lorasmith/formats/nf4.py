"""NF4: sixteen quantiles of the normal distribution, zero among them (QLoRA, arXiv 2305.14314, appendix E)."""

from lorasmith.formats.format import Format, formats

# The published constants. quantile_codebook(4) derives them to 1e-6; these exact f32 values are what files hold.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

NF4 = formats.add("nf4", Format("nf4", bits=4, layout="blockwise", levels=LEVELS, bitsandbytes="nf4"))
